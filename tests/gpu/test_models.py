"""Every family on a real GPU, with Triton's kernels, against its own run on the CPU in float32 with the reference's.

Random weights are the same on every device. Sequences are read in chunks, with a late arrival, shared pages and
decoding in the same steps; in bfloat16 the yardstick is what bfloat16 costs the reference on the CPU.
"""

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
# Without a GPU, QUIRE_TEST_DEVICE=cpu runs this file with torch's kernels: it then proves the file itself.
DEVICE = os.environ.get("QUIRE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]

from quire import models  # noqa: E402
from quire.checkpoint.read import read_facts  # noqa: E402
from quire.layers.build import Build  # noqa: E402
from quire.loading import fill_dummy  # noqa: E402
from quire.ops.registry import load_providers  # noqa: E402
from quire.ops.samples import step_over  # noqa: E402
from quire.parallel.mesh import Mesh  # noqa: E402
from tests.models.driver import Driver, moved  # noqa: E402
from tests.models.families import BASE, FAMILY  # noqa: E402
from tests.pooling import encoders  # noqa: E402

PROVIDERS = ["triton", "torch_native"] if DEVICE == "cuda" else ["torch_native"]
SEED, NEW, PAGE = 11, 5, 16
LIMIT = 1e-3
"""Of float32: the norm of what differs, as a share of that of the logits."""
WIDTHS = {48: 256, 56: 512, 20: 64, 28: 64}
SIZES = ("hidden_size", "n_embd", "word_embed_proj_dim", "ffn_dim", "intermediate_size", "moe_intermediate_size")
SIZES += ("shared_expert_intermediate_size", "shared_intermediate_size")
RENAMED = {"xlm_roberta": "xlm-roberta"}
LEFT_OUT = {"gte": {"hidden_act": "gelu"}, "nomic_bert": {"hidden_act": "silu"}}
"""What transformers writes of its defaults into a checkpoint, and a family wants to be told."""


def widened(config):
    """`config` with sizes that kernels are made for."""
    sizes = {name: value for name, value in config.items() if name in SIZES and isinstance(value, int)}
    wide = {**config, **{name: WIDTHS.get(value, value) for name, value in sizes.items()}}
    if wide.get("head_dim") in (12, 16):
        wide["head_dim"] = 64
    return {name: value for name, value in wide.items() if value is not ...}


def write(folder: Path, family: str, base, table) -> Path:
    name = RENAMED.get(family, family)
    config = {
        **base,
        **table[name],
        **LEFT_OUT.get(family, {}),
        "model_type": name,
        "dtype": "float32",
        "architectures": ["AnyModel"],
    }
    if base is BASE:
        config["architectures"] = ["AnyForCausalLM"]
    (folder / "config.json").write_text(json.dumps(widened(config)))
    return folder


class Follower(Driver):
    """Continues as another driver did, whatever its own logits say."""

    def greedy(self, sequence):
        length = len(sequence.tokens)
        return next(tokens[length] for tokens in self.said if tokens[:length] == sequence.tokens)


def texts(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def run(path, device, dtype, providers, said=()):
    """Tokens and logits of each sequence."""
    kind = Follower if said else Driver
    driver = kind(path, PAGE, providers, device=device, dtype=dtype, seed=SEED)
    driver.said = said
    found = driver.generate(texts((45, 23, 70)), NEW)
    return [s.tokens for s in found], torch.cat([s.all_logits().float().cpu() for s in found])


def states(path, device, dtype, providers):
    """Hidden states of whole texts of an encoder."""
    load_providers(providers)
    build = Build(mesh=Mesh(), dtype=dtype, device=torch.device(device), providers=providers)
    model = models.build(read_facts("tiny", path), build)
    fill_dummy(model, SEED, Mesh())
    lengths = (5, 60, 1, 33)
    step = step_over(lengths, lengths, [[1] * n for n in lengths], 1)
    step.token_ids.copy_(torch.tensor([token for text in texts(lengths) for token in text]))
    with torch.inference_mode():
        return model(moved(step, torch.device(device))).float().cpu()


def apart(got, want):
    assert torch.isfinite(got).all()
    return float((got - want).norm() / want.norm())


GENERATING = [name for name in models.supported() if name in FAMILY]
READING = [name for name in models.supported() if RENAMED.get(name, name) in encoders.ENCODERS]


def test_no_family_is_left_out():
    assert {*GENERATING, *READING, "toy"} == set(models.supported())


@pytest.mark.parametrize("family", GENERATING)
def test_a_family_gives_what_it_gives_on_a_cpu(family, tmp_path):
    path = write(tmp_path, family, BASE, FAMILY)
    said, want = run(path, "cpu", torch.float32, [])
    assert apart(run(path, DEVICE, torch.float32, PROVIDERS, said)[1], want) < LIMIT
    cost = apart(run(path, "cpu", torch.bfloat16, [], said)[1], want)
    assert apart(run(path, DEVICE, torch.bfloat16, PROVIDERS, said)[1], want) < 2 * cost + 1e-2


@pytest.mark.parametrize("family", READING)
def test_an_encoder_gives_what_it_gives_on_a_cpu(family, tmp_path):
    path = write(tmp_path, family, encoders.BASE, encoders.ENCODERS)
    want = states(path, "cpu", torch.float32, ())
    assert apart(states(path, DEVICE, torch.float32, tuple(PROVIDERS)), want) < LIMIT
    cost = apart(states(path, "cpu", torch.bfloat16, ()), want)
    assert apart(states(path, DEVICE, torch.bfloat16, tuple(PROVIDERS)), want) < 2 * cost + 1e-2
