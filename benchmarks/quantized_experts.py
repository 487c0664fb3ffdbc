"""One layer of quantized experts on a GPU, beside the same in bfloat16: microseconds by tokens, in CUDA graphs.

    python benchmarks/quantized_experts.py [TOKENS ...]

Shapes of Qwen3-30B-A3B and of gpt-oss-20b. Every call of a graph reads other weights, so that no cache holds them;
that results are right is said by `tests/gpu/test_stored_moe.py`.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from dense import graph_us, normal
from quantized import FORMS, weight_of
from torch import Tensor

from quire.kernels.triton.moe import triton_moe
from quire.kernels.triton.moe.stored import triton_stored_moe
from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec
from quire.ops.stored_moe import StoredMoeSpec

TOKENS = (1, 16, 64, 512, 4096)
QWEN = MoeSpec(RouteSpec(128, 8, True, "bfloat16", "cuda"), 2048, 768, "bfloat16", "cuda")
GPT_OSS = MoeSpec(RouteSpec(32, 4, True, "bfloat16", "cuda"), 2880, 2880, "bfloat16", "cuda", "clamped", bias=True)
CASES = ((QWEN, "bfloat16"), (QWEN, "int4"), (QWEN, "nvfp4"), (QWEN, "fp8"), (GPT_OSS, "mxfp4"))
LAYERS = 3


def layer(spec: MoeSpec, form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What one layer makes of tokens and logits."""
    experts, firsts = spec.route.experts, spec.firsts * spec.inner
    biases = MoeBiases(None, normal(experts, firsts), normal(experts, spec.hidden)) if spec.bias else None
    if form == "bfloat16":
        gate_up, down = normal(experts, firsts, spec.hidden), normal(experts, spec.hidden, spec.inner)
        return lambda x, logits: triton_moe(x, logits, gate_up, down, spec, biases)
    first = weight_of(FORMS[form], experts * firsts, spec.hidden)
    second = weight_of(FORMS[form], experts * spec.hidden, spec.inner)
    stored = StoredMoeSpec(spec, first.storage, second.storage)
    return lambda x, logits: triton_stored_moe(x, logits, first.data, second.data, stored, biases)


def each(layers: list[Callable[[Tensor, Tensor], Tensor]], x: Tensor, logits: Tensor) -> None:
    for one in layers:
        one(x, logits)


def main() -> None:
    """Measure and print."""
    counts = tuple(map(int, sys.argv[1:])) or TOKENS
    for spec, form in CASES:
        layers = [layer(spec, form) for _ in range(LAYERS)]
        for tokens in counts:
            x, logits = normal(tokens, spec.hidden), normal(tokens, spec.route.experts)
            us = graph_us(partial(each, layers, x, logits)) / LAYERS
            rate = 6 * tokens * spec.route.top_k * spec.hidden * spec.inner / us / 1e6
            name = f"{spec.route.experts} experts of {spec.hidden} x {spec.inner}"
            print(f"{name}, {form}, {tokens} tokens: {us:.1f} us, {rate:.0f} TFLOP/s", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
