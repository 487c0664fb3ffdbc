"""Mixture of experts on weights that are packed: choice and experts in one call each of the compiled library."""

import ctypes

import torch
from torch import Tensor

from quire.kernels.cpu.linear import PANEL, Matrix, Panels, cpu_linear
from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec, gated, route
from quire.ops.registry import provide
from quire.ops.stored import StoredSpec
from quire.ops.stored_moe import StoredMoeSpec, stored_moe
from quire.platforms import native


class _Experts(ctypes.Structure):
    """`Experts` of native/experts.cpp."""

    _fields_ = (
        *((name, Matrix) for name in ("gate_up", "down")),
        *((name, ctypes.c_int64) for name in ("count", "top_k", "dtype")),
    )


_library = native.load()[0]
_run, _route = _library.qcpu_experts, _library.qcpu_route
_run.restype = _route.restype = None
_run.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_long, ctypes.c_void_p]
_route.argtypes = [ctypes.c_void_p, *[ctypes.c_long] * 3, *[ctypes.c_int] * 2, *[ctypes.c_void_p] * 2]


def _refuses_route(spec: RouteSpec) -> str | None:
    if spec.device != "cpu":
        return f"written for the CPU, not for {spec.device}"
    return None if spec.plain and spec.dtype in native.NUMBERS else "chooses by a softmax of float32 or bfloat16 alone"


@provide("cpu", route, _refuses_route, batch_invariant=True)
def cpu_route(logits: Tensor, spec: RouteSpec, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `route`."""
    logits = logits.contiguous()
    weights = torch.empty(len(logits), spec.top_k, dtype=torch.float32)
    ids = torch.empty(len(logits), spec.top_k, dtype=torch.int32)
    _route(
        logits.data_ptr(),
        len(logits),
        spec.experts,
        spec.top_k,
        spec.normalize,
        native.number(logits.dtype),
        weights.data_ptr(),
        ids.data_ptr(),
    )
    return weights, ids


def _refuses(spec: StoredMoeSpec) -> str | None:
    if not isinstance(spec.gate_up, Panels) or not isinstance(spec.down, Panels):
        return "reads weights that it packed itself"
    if spec.moe.hidden % PANEL or spec.moe.inner % PANEL:
        return f"hidden={spec.moe.hidden} or inner={spec.moe.inner} is no multiple of {PANEL}"
    return None


@provide("cpu", stored_moe, _refuses, capturable=False, batch_invariant=True)
def cpu_stored_moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: StoredMoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """See `stored_moe`. What experts make is rounded to the dtype of `x` and added up in the order of their slots."""
    biases = biases or MoeBiases()
    chooses = cpu_route if _refuses_route(spec.moe.route) is None else route.reference
    weights, ids = chooses(logits, spec.moe.route, biases.choice)
    if spec.moe.gate != "silu" or spec.moe.bias or spec.moe.weigh_input:
        return _one_by_one(x, (weights, ids), (gate_up, down), spec, biases)
    assert isinstance(spec.gate_up, Panels) and isinstance(spec.down, Panels)
    x, out = x.contiguous(), torch.empty_like(x)
    made = _Experts(
        spec.gate_up.matrix(gate_up),
        spec.down.matrix(down),
        spec.moe.route.experts,
        spec.moe.route.top_k,
        native.number(x.dtype),
    )
    _run(ctypes.byref(made), x.data_ptr(), ids.data_ptr(), weights.data_ptr(), len(x), out.data_ptr())
    return out


def _one_by_one(
    x: Tensor, routed: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor], spec: StoredMoeSpec, biases: MoeBiases
) -> Tensor:
    """The forms of experts that are rare: each needed expert on its tokens, with products of its own."""
    weights, ids = routed
    moe: MoeSpec = spec.moe
    made = torch.zeros(len(x), moe.route.top_k, moe.hidden)
    for expert in ids.unique().tolist():
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        weight = weights[tokens, slots, None]
        read = (x[tokens].float() * weight).to(x.dtype) if moe.weigh_input else x[tokens]
        first, second = (None if bias is None else bias[expert] for bias in (biases.gate_up, biases.down))
        inner = gated(_product(read, spec.gate_up, data[0], expert, (moe, first)), moe)
        out = _product(inner, spec.down, data[1], expert, (moe, second)).float()
        made[tokens, slots] = out if moe.weigh_input else out * weight
    return made.sum(1).to(x.dtype)


def _product(x: Tensor, storage: object, data: Tensor, expert: int, of: tuple[MoeSpec, Tensor | None]) -> Tensor:
    moe, bias = of
    assert isinstance(storage, Panels)
    count = moe.route.experts
    one = storage.part(count)
    share = len(data) // count
    spec = StoredSpec(one, bias is not None, moe.dtype)
    made: Tensor = cpu_linear(x, data[expert * share : (expert + 1) * share], bias, spec)
    return made
