"""The noise generator: its exact bits, and that nothing in them is related to anything else."""

import numpy as np
import pytest
import torch
from scipy import stats

from quire.ops import noise

pytestmark = pytest.mark.torch


def keys(seeds, positions):
    return noise.row_keys(
        torch.tensor([noise.seed_key(s) for s in seeds], dtype=torch.int64), torch.tensor(positions, dtype=torch.int64)
    )


def python_bits(seed: int, position: int, token: int) -> int:
    """The definition in Python integers."""
    mask64, mask32 = 2**64 - 1, 2**32 - 1

    def mix64(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix64((mix64((seed + golden) & mask64) + (position + 1) * golden) & mask64)
    x = token ^ (key & mask32)
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & mask32
    x = ((x ^ (x >> 11)) * 0xAC4C1B51) & mask32
    x = (x + (key >> 32)) & mask32
    x = ((x ^ (x >> 15)) * 0x31848BAB) & mask32
    return (x ^ (x >> 14)) & 0x7FFFFFFF


def test_seed_key_is_splitmix64():
    assert noise.seed_key(1234567) % 2**64 == 6457827717110365317


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, 2**64 - 1])
def test_bits_are_those_of_the_definition(seed):
    ids = torch.tensor([0, 1, 7, 150_000], dtype=torch.int32)
    for position in (0, 1, 2**20):
        found = noise.bits(keys([seed], [position]), ids)[0].tolist()
        assert found == [python_bits(seed, position, i) for i in ids.tolist()]


def test_a_row_depends_on_nothing_else():
    ids = torch.arange(1000, dtype=torch.int32)
    every = noise.log_exponential(keys(range(40), range(40)), ids)
    for row in (0, 3, 39):
        alone = noise.log_exponential(keys([row], [row]), ids)
        assert torch.equal(alone[0], every[row])
        few = noise.log_exponential(keys([row], [row]), ids[[5, 17, 901]].unsqueeze(0))
        assert torch.equal(few[0], every[row, [5, 17, 901]])


@pytest.mark.parametrize("shift", [0, 12, 23])
def test_bits_are_uniform(shift):
    found = noise.bits(keys(range(100), range(100)), torch.arange(2000, dtype=torch.int32))
    cells = np.bincount(((found >> shift) & 0xFF).flatten().numpy(), minlength=256)
    assert stats.chisquare(cells).pvalue > 1e-6


def test_noise_has_the_gumbel_distribution():
    found = -noise.log_exponential(keys(range(100), [9] * 100), torch.arange(2000, dtype=torch.int32))
    assert stats.kstest(found.flatten().double().numpy(), "gumbel_r").pvalue > 1e-6


def test_extreme_bits_give_finite_noise(monkeypatch):
    monkeypatch.setattr(noise, "bits", lambda keys, ids: ids)
    found = noise.log_exponential(keys([0], [0]), torch.tensor([0, 1, 2**31 - 2, 2**31 - 1], dtype=torch.int32))
    assert found.isfinite().all()
    assert found[0] < found[1] < -20
    assert 2.5 < found[2] <= found[3] < 3


NEIGHBOURS = {
    "ids": (([5], [7]), ([5], [7]), 1),
    "positions": (([5], [7]), ([5], [8]), 0),
    "seeds": (([5], [7]), ([6], [7]), 0),
    "seed and position": (([5], [7]), ([6], [6]), 0),
    "far ids": (([5], [7]), ([5], [7]), 1024),
}


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_neighbours_are_independent(case):
    first, second, offset = NEIGHBOURS[case]
    ids = torch.arange(200_000, dtype=torch.int32)
    a = noise.bits(keys(*first), ids)[0]
    b = noise.bits(keys(*second), ids + offset)[0]
    for shift in (0, 27):
        pairs = ((a >> shift) & 0xF) * 16 + ((b >> shift) & 0xF)
        assert stats.chisquare(np.bincount(pairs.numpy(), minlength=256)).pvalue > 1e-6
    assert abs(np.corrcoef(a.numpy(), b.numpy())[0, 1]) < 0.012  # five standard deviations


def test_every_input_bit_moves_every_output_bit():
    rng = np.random.default_rng(0)
    n = 4000
    seeds, positions = rng.integers(0, 2**63, n).tolist(), rng.integers(0, 2**20, n).tolist()
    ids = torch.tensor(rng.integers(0, 150_000, (n, 1)), dtype=torch.int32)
    base = noise.bits(keys(seeds, positions), ids)
    flips = {f"seed bit {b}": (keys([s ^ (1 << b) for s in seeds], positions), ids) for b in (0, 1, 31, 32, 62)}
    flips |= {f"position bit {b}": (keys(seeds, [p ^ (1 << b) for p in positions]), ids) for b in (0, 1, 10, 19)}
    flips |= {f"id bit {b}": (keys(seeds, positions), ids ^ (1 << b)) for b in range(18)}
    for name, (key, changed) in flips.items():
        moved = noise.bits(key, changed) ^ base
        share = [((moved >> bit) & 1).float().mean().item() for bit in range(31)]
        assert all(abs(s - 0.5) < 0.05 for s in share), name  # six standard deviations
