"""What is done with logits, each in one call of the compiled library: edits, draws, log-probabilities.

No vocabulary is sorted, and edits are one pass over each row.
"""

import ctypes

import torch
from torch import Tensor

from quire.ops.draw import Group, RowTable, draw_tokens
from quire.ops.edit import BanTable, EditTables, Slots, edit_logits
from quire.ops.greedy import greedy_sample
from quire.ops.logprobs import Logprobs, token_logprobs
from quire.ops.registry import provide
from quire.platforms import native

_BANS = ("first", "token", "until", "length", "prefix")


class _Tables(ctypes.Structure):
    """`EditTables` of native/edit.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("numbers", "offsets", "offset_slots", "counts", "count_slots", "masks")),
        *((name, ctypes.c_void_p) for name in (*_BANS, "history", "known")),
        *((name, ctypes.c_int64) for name in ("width", "max_len")),
    )


_library = native.load()[0]
_greedy, _draw, _describe = _library.qcpu_greedy, _library.qcpu_draw, _library.qcpu_describe
_edit = _library.qcpu_edit
_greedy.restype = _draw.restype = _describe.restype = _edit.restype = None
_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_greedy.argtypes = [_pointer, _pointer, _long, _long, _long, _int]
_draw.argtypes = [_pointer, _long, _long, _long, _int, *[_pointer] * 5]
_describe.argtypes = [_pointer, _long, _long, _long, _int, _pointer, _long, *[_pointer] * 3]
_edit.argtypes = [_pointer, _long, _long, _long, _int, _pointer, ctypes.POINTER(_Tables), _pointer]


@provide("cpu", greedy_sample, batch_invariant=True)
def cpu_greedy_sample(logits: Tensor) -> Tensor:
    """See `greedy_sample`."""
    data, rows, vocab, stride, dtype = _described(logits := _readable(logits))
    drawn = torch.empty(2, rows, dtype=torch.int64)
    _greedy(data, drawn.data_ptr(), rows, vocab, stride, dtype)
    return drawn


@provide("cpu", edit_logits, batch_invariant=True)
def cpu_edit_logits(
    logits: Tensor, rows: Tensor, table: RowTable, tables: EditTables, history: Tensor, known: Tensor
) -> Tensor:
    """See `edit_logits`."""
    logits, rows = _readable(logits), rows.contiguous()
    edited = torch.empty(logits.shape, dtype=torch.float32)
    bans = tables.bans
    given = _Tables(
        _address(table.numbers),
        *_addresses(tables.offsets),
        *_addresses(tables.counts),
        None if tables.masks is None else _address(tables.masks),
        *((None,) * len(_BANS) if bans is None else _entries(bans)),
        _address(history),
        _address(known),
        0 if bans is None else bans.prefix.shape[1],
        history.shape[1],
    )
    _edit(*_described(logits), rows.data_ptr(), given, edited.data_ptr())
    return edited


@provide("cpu", draw_tokens, batch_invariant=True)
def cpu_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. The table says all there is to know, so `groups` are not looked at."""
    logits = _readable(logits)
    rows, drawn = rows.contiguous(), torch.empty(2, len(logits), dtype=torch.int64)
    assert known.is_contiguous() and table.numbers.is_contiguous() and table.integers.is_contiguous()
    tables = (rows, known, table.numbers, table.integers, drawn)
    _draw(*_described(logits), *(tensor.data_ptr() for tensor in tables))
    return drawn


@provide("cpu", token_logprobs, batch_invariant=True)
def cpu_token_logprobs(logits: Tensor, chosen: Tensor, top: int, wanted: Tensor | None = None) -> Logprobs:
    """See `token_logprobs`."""
    logits, chosen = _readable(logits), chosen.contiguous()
    count, vocab = logits.shape
    top = min(top, vocab)
    ids, ranks = torch.empty(count, 1 + top, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    values = torch.empty(count, 1 + top, dtype=torch.float32)
    found = (tensor.data_ptr() for tensor in (ids, values, ranks))
    _describe(*_described(logits), chosen.data_ptr(), top, *found)
    return Logprobs(ids, values, ranks)


def _readable(logits: Tensor) -> Tensor:
    known = native.number(logits.dtype) is not None
    return logits if known and logits.stride(1) == 1 else logits.float().contiguous()


def _described(logits: Tensor) -> tuple[int, int, int, int, int]:
    rows, vocab = logits.shape
    dtype = native.number(logits.dtype)
    assert dtype is not None
    return logits.data_ptr(), rows, vocab, logits.stride(0), dtype


def _addresses(slots: Slots | None) -> tuple[int | None, int | None]:
    return (None, None) if slots is None else (_address(slots.table), _address(slots.of_row))


def _entries(bans: BanTable) -> tuple[int, ...]:
    return tuple(_address(getattr(bans, name)) for name in _BANS)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()
