"""Quantized experts on a real GPU: every form, gate and way to choose, in graphs and out."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec  # noqa: E402
from quire.ops.stored_moe import StoredMoeSpec, stored_moe  # noqa: E402
from quire.quantization.scaled import Form, Scaled  # noqa: E402
from tests.quantization.forms import FORMS  # noqa: E402

if torch.cuda.is_available():
    from quire.kernels.triton.dense.quantized.weight import arranged
    from quire.kernels.triton.moe.stored import triton_stored_moe

# Tokens reach every height of tiles.
TOKENS = (1, 7, 40, 130, 700)
PLAIN = RouteSpec(16, 4, True, "bfloat16", "cuda")
GROUPED = RouteSpec(
    16, 4, True, "float32", "cuda", "sigmoid", bias=True, groups=4, top_groups=2, group_best=2, scale=2.5
)


def made(tokens: int, form: Form, moe: MoeSpec) -> dict[str, Any]:
    """Arguments of the op on experts in `form`."""
    generator = torch.Generator("cuda").manual_seed(tokens)

    def normal(*sizes: int) -> Any:
        return torch.randn(*sizes, device="cuda", generator=generator).bfloat16()

    route, storages, weights = moe.route, [], []
    for rows, inputs in ((moe.firsts * moe.inner, moe.hidden), (moe.hidden, moe.inner)):
        storage = arranged(Scaled.of(route.experts * rows, inputs, form, "bfloat16", "cuda"))
        assert storage is not None
        storages.append(storage)
        weights.append(storage.allocate())
        storage.put(weights[-1], 0, normal(route.experts * rows, inputs) / inputs**0.5)
    choice = torch.randn(route.experts, device="cuda") if route.bias else None
    both = [normal(route.experts, n) if moe.bias else None for n in (moe.firsts * moe.inner, moe.hidden)]
    logits = normal(tokens, route.experts).to(getattr(torch, route.dtype))
    x, spec = normal(tokens, moe.hidden), StoredMoeSpec(moe, *storages)
    names = ("x", "logits", "gate_up", "down", "spec", "biases")
    return dict(zip(names, (x, logits, *weights, spec, MoeBiases(choice, *both)), strict=True))


def wanted(inputs: dict[str, Any]) -> Any:
    """The reference on the same values in float32."""
    biases = inputs["biases"]
    both = [None if bias is None else bias.float() for bias in (biases.gate_up, biases.down)]
    wide = {"x": inputs["x"].float(), "biases": MoeBiases(biases.choice, *both)}
    return stored_moe.reference(**(inputs | wide))


def off(got: Any, want: Any) -> float:
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", ["fp8", "fp8 groups", "int8", "int4", "int4 32", "nvfp4", "mxfp4"])
def test_experts_equal_the_reference(name: str, tokens: int) -> None:
    inputs = made(tokens, FORMS[name], MoeSpec(PLAIN, 384, 256, "bfloat16", "cuda"))
    got = triton_stored_moe(**inputs)
    assert off(got, wanted(inputs)) < 8e-3
    assert torch.equal(triton_stored_moe(**inputs), got)


@pytest.mark.parametrize("tokens", [1, 40, 700])
@pytest.mark.parametrize(
    "moe",
    [
        MoeSpec(PLAIN, 360, 360, "bfloat16", "cuda", "clamped", bias=True),
        MoeSpec(PLAIN, 256, 256, "bfloat16", "cuda", "relu2"),
        MoeSpec(PLAIN, 256, 256, "bfloat16", "cuda", weigh_input=True),
        MoeSpec(GROUPED, 256, 256, "bfloat16", "cuda"),
    ],
    ids=["clamped", "relu2", "weighed inputs", "groups"],
)
def test_every_kind_of_experts(moe: MoeSpec, tokens: int) -> None:
    for form in ("mxfp4", "fp8 groups"):
        inputs = made(tokens, FORMS[form], moe)
        assert off(triton_stored_moe(**inputs), wanted(inputs)) < 8e-3


@pytest.mark.parametrize("route", [PLAIN, GROUPED], ids=["plain", "groups"])
def test_a_recorded_graph_follows_its_inputs(route: RouteSpec) -> None:
    inputs = made(33, FORMS["int4"], MoeSpec(route, 384, 256, "bfloat16", "cuda"))
    triton_stored_moe(**inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = triton_stored_moe(**inputs)
    for seed in range(3):
        generator = torch.Generator("cuda").manual_seed(seed)
        for name in ("x", "logits"):
            inputs[name].copy_(torch.randn(inputs[name].shape, device="cuda", generator=generator))
        out.fill_(torch.nan)
        graph.replay()
        assert off(out, wanted(inputs)) < 8e-3


def test_a_row_depends_on_itself_alone() -> None:
    inputs = made(40, FORMS["mxfp4"], MoeSpec(PLAIN, 360, 360, "bfloat16", "cuda", "clamped", bias=True))
    clean = triton_stored_moe(**inputs)
    inputs["x"][1] = torch.nan
    spoilt = triton_stored_moe(**inputs)
    assert spoilt[1].isnan().all()
    rest = [0, *range(2, 40)]
    assert torch.equal(clean[rest], spoilt[rest])
