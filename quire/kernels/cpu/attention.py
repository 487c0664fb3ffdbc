"""The block between two projections in one call: heads normed and rotated, pages written, attention over pages.

Sequences whose page tables name the same pages read them once. Pools are of the dtype of the activations.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend
from quire.ops.registry import provide
from quire.ops.step import StepInputs
from quire.platforms import native

MAX_HEAD_DIM = 512


class Shape(ctypes.Structure):
    """`AttentionShape` of native/attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim", "rotary_dim", "window")),
        *((name, ctypes.c_int64) for name in ("has_norm", "dtype", "batch_invariant")),
        *((name, ctypes.c_double) for name in ("scale", "soft_cap", "norm_eps")),
    ]


class _Step(ctypes.Structure):
    """`AttentionStep` of native/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("positions", "slots", "query_start", "lengths", "pages")),
        *((name, ctypes.c_int64) for name in ("tokens", "sequences", "table_stride", "page_size")),
    ]


_attend = native.load()[0].qcpu_attend
_attend.restype = None
_attend.argtypes = [ctypes.c_void_p] * 9


def refuses(spec: AttentionSpec) -> str | None:
    """Why a layer's attention cannot be computed here, or None."""
    if spec.device != "cpu":
        return f"written for the CPU, not for {spec.device}"
    if spec.special is not None:
        return f"has no {spec.special}"
    if spec.dtype not in native.NUMBERS:
        return f"has no {spec.dtype}"
    if spec.kept != spec.dtype:
        return f"keeps keys and values as {spec.dtype}, not as {spec.kept}"
    if spec.norm_dtype not in (None, spec.dtype):
        return f"reads norms of {spec.dtype}, not of {spec.norm_dtype}"
    if spec.head_dim % 2 or spec.head_dim > MAX_HEAD_DIM:
        return f"head_dim={spec.head_dim} is odd or above {MAX_HEAD_DIM}"
    return None


@provide("cpu", attend, refuses, batch_invariant=True)
def cpu_attend(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `attend`. Sums are in float32; with bfloat16, probabilities and rotated queries are rounded to it."""
    out = torch.empty(len(qkv), spec.heads * spec.head_dim, dtype=qkv.dtype)
    assert qkv.is_contiguous() and pages.k.is_contiguous() and pages.v.is_contiguous()
    _attend(
        _shape(spec),
        step.once(("cpu", pages.group), lambda: step_of(step, pages.group))[0],
        qkv.data_ptr(),
        weights.table.data_ptr(),
        None if weights.q_norm is None else weights.q_norm.data_ptr(),
        None if weights.k_norm is None else weights.k_norm.data_ptr(),
        pages.k.data_ptr(),
        pages.v.data_ptr(),
        out.data_ptr(),
    )
    return out


@cache
def _shape(spec: AttentionSpec) -> object:
    return ctypes.byref(shape_of(spec))


def shape_of(spec: AttentionSpec) -> Shape:
    """The layer's shapes as C sees them."""
    return Shape(
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
        spec.rotary_dim,
        spec.window or 0,
        spec.norm_eps is not None,
        native.NUMBERS[spec.dtype],
        spec.batch_invariant,
        spec.scale,
        spec.soft_cap or 0.0,
        spec.norm_eps or 0.0,
    )


def step_of(step: StepInputs, group: int) -> tuple[object, tuple[Tensor, ...]]:
    """The arrays of a step as C sees them, and what keeps them alive."""
    inputs = step.groups[group]
    table = inputs.page_table if inputs.page_table.stride(1) == 1 else inputs.page_table.contiguous()
    arrays = (step.positions, inputs.slots, step.query_start, step.seq_lens, table)
    assert all(a.is_contiguous() for a in arrays[:4])
    made = _Step(
        *(a.data_ptr() for a in arrays), len(step.positions), len(step.seq_lens), table.stride(0), inputs.page_size
    )
    return ctypes.byref(made), arrays
