"""Attention over pages by cuDNN, for steps with long prompts: packed queries of few sequences in one call.

cuDNN works by plans, each for a most number of sequences, queries and tokens. A plan that is too large costs nothing
(2 % on an H200), so few are made, before the first step, and all layers of the same shape share them. It attends to no
windows and bounds no scores: other kernels do. It reads no pages of 8 bits: those that a layer needs are widened into
memory that all layers share, which takes 2 to 15 % of its time.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import PlatformError
from quire.ops.attention import PROMPTS, AttentionSpec, KVPages, paged_attention
from quire.ops.narrow import LARGEST, raw
from quire.ops.registry import Sizes, provide
from quire.ops.step import GroupInputs, StepInputs

OLDEST = 91000
"""The first version of cuDNN (9.10) that is trusted with packed queries over pages."""

LEAST = 8192
"""Queries of a sequence, and tokens, that the smallest plan is made for; others are for 4, 16, ... times as many."""

POOL = 1 << 20
"""Pages that a plan is told of. A pool has fewer, but plans are made before there are pools."""


class _Id(IntEnum):
    """The tensors of a plan."""

    QUERIES = 1
    KEYS = 2
    VALUES = 3
    OUT = 4
    QUERY_COUNTS = 5
    LENGTHS = 6
    STARTS = 7
    KEY_TABLE = 8
    VALUE_TABLE = 9


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a plan is made for.

    Attributes:
        queries, tokens: most of each of PROMPTS sequences.
        page_size: tokens per page.
    """

    queries: int
    tokens: int
    page_size: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(cls, queries: int, tokens: int, page_size: int, spec: AttentionSpec) -> "_Bounds":
        """Those for at most so many queries and tokens, rounded up to what plans are made for."""
        queries = _rounded(queries)
        tokens = max(queries, _rounded(tokens))
        heads = spec.heads, spec.kv_heads, spec.head_dim
        return cls(queries, tokens, page_size, *heads, spec.scale, getattr(torch, spec.dtype))

    @property
    def pages(self) -> int:
        """Most pages of a sequence."""
        return -(-self.tokens // self.page_size)


@dataclass(frozen=True, slots=True)
class _Packed:
    """How a step's sequences lie, as cuDNN wants to know it; the same for all layers of a cache group.

    Attributes:
        counts, lengths, starts, table: int32, for as many rows as the plan has.
        tails: (n,) int64, the unused slots of last pages.
    """

    counts: Tensor
    lengths: Tensor
    starts: Tensor
    table: Tensor
    tails: Tensor


def _refuses(spec: AttentionSpec) -> str | None:
    if spec.step != "prompts":
        return "made for long prompts: a call is dear, and it reads keys and values once for each query head"
    if spec.special is not None:
        return f"has no {spec.special}"
    if spec.soft_cap is not None or spec.window is not None:
        return "attends to no windows and bounds no scores"
    if spec.dtype not in ("bfloat16", "float16"):
        return f"does not compute in {spec.dtype}"
    if spec.kept != spec.dtype and getattr(torch, spec.kept) not in LARGEST:
        return f"computes in {spec.dtype} on pages of that dtype or of 8 bits, not {spec.kept}"
    if spec.head_dim % 8 or spec.head_dim > 128:
        return f"heads of {spec.head_dim} values: takes multiples of 8 up to 128"
    return _absent(torch.device(spec.device))


@functools.cache
def _absent(device: torch.device) -> str | None:
    """Why cuDNN cannot be used on `device`; None if it can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    major = torch.cuda.get_device_capability(device)[0]
    if major not in (9, 10):
        return f"packs queries on compute capability 9 and 10 only, this GPU has {major}"
    try:
        import cudnn
    except (ImportError, RuntimeError, OSError) as error:
        return f"nvidia-cudnn-frontend cannot be imported ({error}); pip install 'quire[cuda]'"
    if cudnn.backend_version() < OLDEST:
        return f"cuDNN {cudnn.backend_version()} is older than {OLDEST}"
    return None


def _start(spec: AttentionSpec, sizes: Sizes) -> None:
    """Make all plans that steps can ask for. Raises PlatformError."""
    device = torch.device(spec.device)
    try:
        for queries, tokens in itertools.product(_to(_rounded(sizes.tokens)), _to(_rounded(sizes.length))):
            _plan(_Bounds.of(queries, tokens, sizes.page_size, spec), device)
        if spec.kept != spec.dtype:
            # What a step computes often follows on as much again.
            most = max(sizes.length, 2 * sizes.tokens)
            _wide_pages(_Kind.of(spec, sizes.page_size), 1 - (-most // sizes.page_size))
    except RuntimeError as error:
        raise PlatformError(
            f"cuDNN cannot prepare attention ({error}); use --kernels triton, or uninstall nvidia-cudnn-frontend"
        ) from error


def _to(most: int) -> Iterator[int]:
    size = LEAST
    while size <= most:
        yield size
        size *= 4


@provide("cudnn", paged_attention, _refuses, start=_start)
def cudnn_paged_attention(q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `paged_attention`."""
    q = q.contiguous()
    out = torch.empty_like(q)
    if not len(q):
        return out
    if pages.k.dtype in LARGEST:
        _attend_narrow(q, pages, step, spec, out)
    else:
        _attend(q, pages, step, spec, out)
    return out


def _attend(q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, out: Tensor) -> None:
    bounds = _Bounds.of(step.max_query, step.max_seq, pages.k.shape[1], spec)
    packed = step.once(("cudnn", pages.group, bounds), lambda: _pack(step, pages.group, bounds))
    plan = _plan(bounds, q.device)
    # It multiplies what lies behind a sequence by 0, which makes NaN of NaN.
    for pool in (pages.k, pages.v):
        pool.flatten(0, 1).index_fill_(0, packed.tails, 0)
    plan.run(q, pages, out, packed)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What widened pages of layers must have in common to take the same memory."""

    page_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, spec: AttentionSpec, page_size: int) -> "_Kind":
        return cls(page_size, spec.kv_heads, spec.head_dim, getattr(torch, spec.dtype), torch.device(spec.device))


_WIDE: dict[_Kind, tuple[Tensor, Tensor, Tensor]] = {}


def _wide_pages(kind: _Kind, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for at least so many pages: keys, values, and either's bytes on their way. Page 0 is nobody's.

    It is taken at start, before the rest is given to pages: at least what one sequence of the greatest length needs.
    """
    if kind not in _WIDE or len(_WIDE[kind][0]) < least:
        shape = (least, kind.page_size, kind.kv_heads, kind.head_dim)
        k, v = (torch.zeros(shape, dtype=kind.dtype, device=kind.device) for _ in range(2))
        _WIDE[kind] = k, v, torch.zeros(shape, dtype=torch.uint8, device=kind.device)
    return _WIDE[kind]


def _attend_narrow(q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, out: Tensor) -> None:
    """Widen the pages of as many sequences as there is room for, attend for these, go on with the next."""
    each = -(-step.max_seq // pages.k.shape[1])
    k, v, stored = _wide_pages(_Kind.of(spec, pages.k.shape[1]), 1 + each)
    for table, part in step.once(("cudnn wide", pages.group, len(k)), lambda: _parts(step, pages.group, each, len(k))):
        for pool, wide, scale in ((pages.k, k, pages.k_scale), (pages.v, v, pages.v_scale)):
            found, target = stored[: len(table)], wide[1 : 1 + len(table)]
            torch.index_select(raw(pool), 0, table, out=found)
            target.copy_(found.view(pool.dtype))
            if scale != 1.0:
                target.mul_(scale)
        _attend(q, KVPages(k, v), part, spec, out)


def _parts(step: StepInputs, group: int, each: int, room: int) -> list[tuple[Tensor, StepInputs]]:
    """The pages of as many sequences as there is room for, `each` of each, (n,), and the step in which these sequences
    find them in that order, from page 1 on, and no others compute; then those of the next.
    """
    found, parts = step.groups[group], []
    some = (room - 1) // each
    for first in range(0, len(step.seq_lens), some):
        rows = slice(first, first + some)
        table = found.page_table[rows, :each]
        lengths, own = torch.zeros_like(step.seq_lens), torch.zeros_like(found.page_table[:, :each])
        lengths[rows] = step.seq_lens[rows]
        own[rows] = torch.arange(1, 1 + table.numel(), dtype=torch.int32, device=table.device).view(table.shape)
        groups = (GroupInputs(own, found.slots, found.page_size),)
        parts.append((table.flatten(), replace(step, seq_lens=lengths, groups=groups, derived={})))
    return parts


def _rounded(n: int) -> int:
    """The next of LEAST times 1, 4, 16, ..."""
    size = LEAST
    while size < n:
        size *= 4
    return size


def _pack(step: StepInputs, group: int, bounds: _Bounds) -> _Packed:
    extra = PROMPTS - len(step.seq_lens)
    lengths, page_size = step.seq_lens.clamp(min=1).long(), step.groups[group].page_size
    # Behind its last page a row names that page again: cuDNN reads whole tiles.
    last = (lengths - 1) // page_size
    page = torch.arange(bounds.pages, device=lengths.device).minimum(last[:, None])
    table = step.groups[group].page_table.gather(1, page)
    start_of_last = table.gather(1, last[:, None]).long() * page_size
    inside = torch.arange(page_size, device=lengths.device)
    used = inside <= ((lengths - 1) % page_size)[:, None]
    starts = step.query_start * (bounds.heads * bounds.head_dim)
    pad = torch.nn.functional.pad
    return _Packed(
        pad(step.query_start.diff() * (step.seq_lens > 0), (0, extra)).view(-1, 1, 1, 1),
        pad(step.seq_lens, (0, extra)).clamp(min=1).view(-1, 1, 1, 1),
        torch.cat([starts, starts[-1:].expand(extra)]).view(-1, 1, 1, 1),
        pad(table, (0, 0, 0, extra)).view(PROMPTS, 1, bounds.pages, 1),
        # Slot 0 is padding's: writing there hurts nobody.
        torch.where(used, 0, start_of_last + inside).flatten(),
    )


class _Library:
    """cuDNN on one device: its handle, and the memory that its plans work in, which calls share one after another."""

    def __init__(self, device: torch.device) -> None:
        import cudnn

        self.cudnn: Any = cudnn
        self.device = device
        with torch.cuda.device(device):
            self.handle = cudnn.create_handle()
        self._room = torch.empty(0, dtype=torch.uint8, device=device)

    def room(self, size: int) -> Tensor:
        """Memory of at least `size` bytes, valid until the next call."""
        if self._room.numel() < size:
            self._room = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._room

    def follow(self) -> Any:
        """The handle, set to torch's current stream."""
        self.cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(self.device).cuda_stream)
        return self.handle


@functools.cache
def _library(device: torch.device) -> _Library:
    return _Library(device)


class _Plan:
    """One compiled call."""

    def __init__(self, bounds: _Bounds, device: torch.device) -> None:
        self._library = _library(device)
        self._graph = _graph(self._library, bounds)
        self._size = max(1, self._graph.get_workspace_size())

    def run(self, q: Tensor, pages: KVPages, out: Tensor, packed: _Packed) -> None:
        """Attend; q and out (tokens, heads, head_dim)."""
        tensors = {
            _Id.QUERIES: q,
            _Id.KEYS: pages.k.permute(0, 2, 1, 3),
            _Id.VALUES: pages.v.permute(0, 2, 1, 3),
            _Id.OUT: out,
            _Id.QUERY_COUNTS: packed.counts,
            _Id.LENGTHS: packed.lengths,
            _Id.STARTS: packed.starts,
            _Id.KEY_TABLE: packed.table,
            _Id.VALUE_TABLE: packed.table,
        }
        handle = self._library.follow()
        self._graph.execute({int(key): t for key, t in tensors.items()}, self._library.room(self._size), handle=handle)


@functools.cache
def _plan(bounds: _Bounds, device: torch.device) -> _Plan:
    with torch.cuda.device(device):
        return _Plan(bounds, device)


def _graph(library: _Library, bounds: _Bounds) -> Any:
    """Build and compile cuDNN's graph of one attention call."""
    cudnn = library.cudnn
    io = cudnn.data_type.BFLOAT16 if bounds.dtype == torch.bfloat16 else cudnn.data_type.HALF
    rows, heads, queries, dim = PROMPTS, bounds.heads, bounds.queries, bounds.head_dim
    page_size, kv_heads = bounds.page_size, bounds.kv_heads
    graph = cudnn.pygraph(
        handle=library.follow(),
        io_data_type=io,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
    )

    def tensor(key: _Id, dim: list[int], stride: list[int], kind: Any) -> Any:
        return graph.tensor(name=key.name, uid=int(key), dim=dim, stride=stride, data_type=kind)

    def column(key: _Id, n: int) -> Any:
        return tensor(key, [n, 1, 1, 1], [1, 1, 1, 1], cudnn.data_type.INT32)

    packed_dim, packed_stride = [rows, heads, queries, dim], [queries * heads * dim, dim, heads * dim, 1]
    pool_dim, pool_stride = [POOL, kv_heads, page_size, dim], [page_size * kv_heads * dim, dim, kv_heads * dim, 1]
    table_dim, table_stride = [rows, 1, bounds.pages, 1], [bounds.pages, bounds.pages, 1, 1]
    starts = column(_Id.STARTS, rows + 1)
    q = tensor(_Id.QUERIES, packed_dim, packed_stride, io)
    q.set_ragged_offset(starts)
    out, _ = graph.sdpa(
        name="attention",
        q=q,
        k=tensor(_Id.KEYS, pool_dim, pool_stride, io),
        v=tensor(_Id.VALUES, pool_dim, pool_stride, io),
        generate_stats=False,
        attn_scale=bounds.scale,
        use_padding_mask=True,
        seq_len_q=column(_Id.QUERY_COUNTS, rows),
        seq_len_kv=column(_Id.LENGTHS, rows),
        diagonal_alignment=cudnn.diagonal_alignment.BOTTOM_RIGHT,
        diagonal_band_right_bound=0,
        paged_attention_k_table=tensor(_Id.KEY_TABLE, table_dim, table_stride, cudnn.data_type.INT32),
        paged_attention_v_table=tensor(_Id.VALUE_TABLE, table_dim, table_stride, cudnn.data_type.INT32),
        paged_attention_max_seq_len_kv=bounds.pages * page_size,
    )
    out.set_output(True).set_uid(int(_Id.OUT)).set_dim(packed_dim).set_stride(packed_stride).set_data_type(io)
    out.set_ragged_offset(starts)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph
