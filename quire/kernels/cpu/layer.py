"""A whole layer of a decoder in one call of the compiled library."""

import ctypes

from torch import Tensor

from quire.kernels.cpu.attention import Shape as AttentionShape
from quire.kernels.cpu.attention import refuses, shape_of, step_of
from quire.kernels.cpu.linear import Matrix, Panels
from quire.ops.attention import KVPages
from quire.ops.layer import LayerSpec, LayerWeights, pre_norm_layer
from quire.ops.norm import NormSpec
from quire.ops.registry import provide
from quire.ops.step import StepInputs
from quire.ops.stored import StoredSpec
from quire.platforms import native
from quire.quantization.stacked import Stacked


class _Product(ctypes.Structure):
    """`LayerProduct` of native/layer.cpp."""

    _fields_ = (
        ("weights", ctypes.POINTER(Matrix)),
        *((name, ctypes.c_long) for name in ("count", "inputs", "outputs")),
        ("bias", ctypes.c_void_p),
    )


class _Norm(ctypes.Structure):
    """`LayerNorm` of native/layer.cpp."""

    _fields_ = (("weight", ctypes.c_void_p), ("eps", ctypes.c_double), ("offset", ctypes.c_double))


class _Layer(ctypes.Structure):
    """`Layer` of native/layer.cpp."""

    _fields_ = (
        *((name, _Product) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _Norm) for name in ("before_attention", "before_mlp")),
        ("attention", AttentionShape),
        *((name, ctypes.c_void_p) for name in ("table", "q_norm", "k_norm")),
        ("gelu", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    )


_run = native.load()[0].qcpu_layer
_run.restype = None
_run.argtypes = [*[ctypes.c_void_p] * 8, ctypes.c_int]


def _refuses(spec: LayerSpec) -> str | None:
    for product in spec.products:
        members = product.storage.members if isinstance(product.storage, Stacked) else (product.storage,)
        if not all(isinstance(member, Panels) for member in members):
            return "reads weights that it packed itself"
    return refuses(spec.attention)


@provide("cpu", pre_norm_layer, _refuses, batch_invariant=True)
def cpu_layer(
    residual: Tensor, delta: Tensor | None, weights: LayerWeights, pages: KVPages, step: StepInputs, spec: LayerSpec
) -> tuple[Tensor, Tensor]:
    """See `pre_norm_layer`."""
    assert residual.is_contiguous() and (delta is None or delta.is_contiguous())
    rows = len(step.seq_lens) if spec.last else len(residual)
    total, added = (residual.new_empty(rows, residual.shape[1]) for _ in range(2))
    _run(
        weights.once("cpu", lambda: _layer(weights, spec))[0],
        step.once(("cpu", pages.group), lambda: step_of(step, pages.group))[0],
        residual.data_ptr(),
        None if delta is None else delta.data_ptr(),
        pages.k.data_ptr(),
        pages.v.data_ptr(),
        total.data_ptr(),
        added.data_ptr(),
        spec.last,
    )
    return total, added


def _layer(weights: LayerWeights, spec: LayerSpec) -> tuple[object, _Layer]:
    """The layer as the library sees it. Weights stay where they are once they are loaded."""
    products = zip(spec.products, weights.weights, weights.biases, strict=True)
    heads = weights.heads
    made = _Layer(
        *(_product(*product) for product in products),
        *(_norm(n, w) for n, w in zip((spec.before_attention, spec.before_mlp), weights.norms, strict=True)),
        shape_of(spec.attention),
        heads.table.data_ptr(),
        _address(heads.q_norm),
        _address(heads.k_norm),
        spec.gate.activation == "gelu_tanh",
        native.NUMBERS[spec.gate.dtype],
    )
    return ctypes.byref(made), made


def _product(spec: StoredSpec, weight: Tensor, bias: Tensor | None) -> _Product:
    whole = spec.storage
    parts = [part[1:] for part in whole.each(weight)] if isinstance(whole, Stacked) else [(whole, weight)]
    found = [storage.matrix(data) for storage, data in parts if isinstance(storage, Panels)]
    return _Product((Matrix * len(found))(*found), len(found), whole.inputs, whole.outputs, _address(bias))


def _norm(spec: NormSpec, weight: Tensor) -> _Norm:
    return _Norm(weight.data_ptr(), spec.eps, spec.offset)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
