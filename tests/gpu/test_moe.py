"""Experts on a real GPU: the Triton kernels against the reference, in graphs and out, at every way that they go."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.ops.moe import MoeSpec, RouteSpec, moe, route  # noqa: E402
from quire.ops.registry import load_providers  # noqa: E402

# tokens reach: no sort, tall weights, tall entries, halved tiles; sizes that fill tiles and sizes that do not.
TOKENS = (1, 4, 5, 33, 128, 129, 700, 2100)
SHAPES = ((32, 8, 256, 128, True), (6, 3, 80, 40, False))


def made(tokens: int, shape: tuple[int, int, int, int, bool], dtype: str, seed: int = 0) -> dict[str, Any]:
    experts, top_k, hidden, inner, normalize = shape
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*sizes: int, scale: float = 1.0) -> Any:
        values = torch.randn(*sizes, device="cuda", generator=generator) * scale
        return values.to(getattr(torch, dtype))

    return {
        "x": normal(tokens, hidden),
        "logits": normal(tokens, experts),
        "gate_up": normal(experts, 2 * inner, hidden, scale=hidden**-0.5),
        "down": normal(experts, hidden, inner, scale=inner**-0.5),
        "spec": MoeSpec(RouteSpec(experts, top_k, normalize, dtype, "cuda"), hidden, inner, dtype, "cuda"),
    }


def triton(op: Any) -> Any:
    pytest.importorskip("triton")
    load_providers(["triton"])
    return op.providers["triton"].function


def wide(inputs: dict[str, Any]) -> Any:
    """The reference in float64 on the same values."""
    spec = inputs["spec"]
    values = {name: value.double() for name, value in inputs.items() if name not in ("spec", "logits")}
    return moe.reference(**values, logits=inputs["logits"], spec=replace(spec, dtype="float64"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", TOKENS)
def test_experts_equal_the_reference(tokens: int, shape: Any, dtype: str) -> None:
    inputs = made(tokens, shape, dtype, seed=tokens)
    got, want = triton(moe)(*inputs.values()), wide(inputs)
    error = (got.double() - want).norm() / want.norm()
    assert error < (1e-6 if dtype == "float32" else 6e-3)


@pytest.mark.parametrize("route_spec", [RouteSpec(64, 8, True), RouteSpec(64, 4, True, score="sigmoid", scale=2.5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_experts_make_of_a_token_is_its_own(dtype: str, route_spec: RouteSpec) -> None:
    inputs = made(5000, (64, route_spec.top_k, 256, 128, True), dtype)
    route_spec = replace(route_spec, dtype=dtype, device="cuda", batch_invariant=True)
    inputs["spec"] = replace(inputs["spec"], route=route_spec)
    whole = triton(moe)(*inputs.values())
    for first, count in ((0, 1), (7, 4), (4000, 40), (1234, 600), (0, 5000)):
        cut = slice(first, first + count)
        alone = triton(moe)(*{**inputs, "x": inputs["x"][cut], "logits": inputs["logits"][cut]}.values())
        assert torch.equal(alone, whole[cut]), (first, count)


@pytest.mark.parametrize("tokens", [1, 9, 3000])
def test_routing_is_exact(tokens: int) -> None:
    spec = RouteSpec(128, 8, True, "bfloat16", "cuda")
    logits = torch.randn(tokens, 128, device="cuda").bfloat16()
    (want, want_ids), (got, ids) = route.reference(logits, spec), triton(route)(logits, spec)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [2, 64, 600])
def test_a_recorded_graph_follows_its_inputs(tokens: int) -> None:
    function = triton(moe)
    inputs = made(tokens, SHAPES[0], "bfloat16")
    function(*inputs.values())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*inputs.values())
    for seed in range(1, 4):
        other = made(tokens, SHAPES[0], "bfloat16", seed)
        inputs["x"].copy_(other["x"])
        inputs["logits"].copy_(other["logits"])
        out.fill_(torch.nan)
        graph.replay()
        want = wide(inputs)
        assert (out.double() - want).norm() / want.norm() < 6e-3


@pytest.mark.parametrize("tokens", [4, 100, 1000])
def test_a_row_depends_on_itself_alone(tokens: int) -> None:
    function = triton(moe)
    inputs = made(tokens, SHAPES[0], "bfloat16")
    clean = function(*inputs.values())
    inputs["x"][1] = torch.nan
    inputs["logits"][2] = torch.nan
    spoilt = function(*inputs.values())
    rest = [0, *range(3, tokens)]
    assert torch.equal(clean[rest], spoilt[rest])
    assert spoilt[1].isnan().all()
