"""Quantizing while loading: what is lost per weight, the canonical form, and what a whole model loses."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quire
from quire.ops.samples import normal
from quire.quantization.canonical import Canonical, halves
from quire.quantization.online import dequantize, quantize_int4, quantize_int8

pytestmark = pytest.mark.torch
TEXT = Path(__file__).parent / "held_out.txt"
"""From a book that the shipped model was not trained on (H. G. Wells, The Time Machine, 1895)."""
TOKENS = 1200


def test_eight_bits_lose_half_a_step() -> None:
    values = normal("float32", 20, 300)
    q, scales = quantize_int8(values)
    assert q.dtype == torch.int8 and q.abs().amax(1).eq(127).all()
    assert ((q * scales[:, None] - values).abs() <= scales[:, None] / 2 * 1.001).all()


@given(rows=st.integers(1, 5), inputs=st.integers(1, 300), group=st.sampled_from([32, 64, 128]))
def test_four_bits_are_the_best_of_the_candidates(rows: int, inputs: int, group: int) -> None:
    values = normal("float32", rows, inputs)
    q, scales = quantize_int4(values, group)
    assert q.min() >= -8 and q.max() <= 7 and scales.shape == (rows, -(-inputs // group))
    lost = (dequantize(q, scales, group) - values).square().sum()
    # The plainest rule: the largest magnitude at 7.
    padded = torch.nn.functional.pad(values, (0, -inputs % group)).view(rows, -1, group)
    steps = padded.abs().amax(2).clamp(min=1e-9) / 7
    plain = (
        dequantize((padded / steps[:, :, None]).round().view(rows, -1)[:, :inputs], steps, group) - values
    ).square()
    assert lost <= plain.sum() * 1.0001


def test_rows_of_zeros_and_tiny_rows() -> None:
    values = torch.zeros(3, 40)
    values[1] = 1e-42
    for q, scales in (quantize_int8(values), quantize_int4(values, 32)):
        assert scales.isfinite().all() and not q[0].any()
        assert (q.float() * scales.view(3, -1)[:, :1]).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_canonical_form_keeps_rows_wherever_they_are_put(bits: int) -> None:
    form = Canonical(7, 45, bits, 32, "float32", "cpu")
    data, values = form.allocate(), normal("float32", 7, 45)
    assert not form.rows(data, torch.arange(7)).any()
    form.put(data, 3, values[3:])
    form.put(data, 0, values[:3])
    q, scales = quantize_int8(values) if bits == 8 else quantize_int4(values, 32)
    want = dequantize(q, scales.view(7, -1), 45 if bits == 8 else 32)
    assert torch.equal(form.rows(data, torch.tensor([6, 0])), want[[6, 0]])
    integers, factors = form.views(data)
    assert integers.shape == ((7, 45) if bits == 8 else (7, 23)) and factors.shape == (7, 1 if bits == 8 else 2)


def test_halves_of_bytes() -> None:
    assert halves(torch.tensor([[-8, 7, 0]])).tolist() == [[0xF0, 0x88]]


def perplexity(**options: object) -> float:
    """Of the shipped model on the held-out text."""
    settings = {"device": "cpu", "max_model_len": 512, "kv_cache_memory_bytes": 1 << 25, "log_level": "warning"}
    with quire.LLM("default", **settings, **options) as llm:
        ids = llm.get_tokenizer().encode(TEXT.read_text())[:TOKENS]
        params = quire.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        lost = [
            -entry[token].logprob
            for chunk in (ids[i : i + 400] for i in range(0, TOKENS, 400))
            for output in llm.generate([{"prompt_token_ids": chunk}], params, use_tqdm=False)
            for token, entry in list(zip(chunk, output.prompt_logprobs, strict=True))[1:]
        ]
    return math.exp(sum(lost) / len(lost))


@pytest.fixture(scope="module")
def unquantized() -> Iterator[float]:
    yield perplexity(dtype="float32")


@pytest.mark.parametrize(
    ("quantization", "kernels", "bound"),
    [
        ("int8", "auto", 1.01),
        ("int8", "reference", 1.01),
        ("int4", "auto", 1.06),
        ("int4", "reference", 1.06),
        # No kernel of a CPU's reads these.
        ("fp8", "reference", 1.01),
        ("nvfp4", "reference", 1.06),
        ("mxfp4", "auto", 1.06),
    ],
)
def test_a_model_loses_little(unquantized: float, quantization: str, kernels: str, bound: float) -> None:
    ratio = perplexity(dtype="float32", kernels=kernels, quantization=quantization) / unquantized
    # Equal would mean that nothing was quantized.
    assert abs(ratio - 1) > 1e-5 and ratio <= bound
