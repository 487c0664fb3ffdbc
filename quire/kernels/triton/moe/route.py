"""Which experts tokens go to, and the sort of (token, slot) entries by expert, by counting.

Equal logits go to the lower expert number, entries of an expert stand in order of token: nothing is
left to chance, and nothing is asked of the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import begin, cdiv, device_of, next_power_of_2
from quire.ops.moe import RouteSpec, route
from quire.ops.registry import provide

SORT_ROWS = {512: 8, 4096: 16}
"""Tokens of a block, by tokens at most; 64 above. Every block reads the counts of all."""
MAX_EXPERTS = 512
"""More would not fit the tiles of the sort; the low bits of a key hold 8,192."""


@triton.constexpr_function
def lowest(wide):
    """Below every key."""
    return -0x7FFFFFFFFFFFFFFF if wide else -0x7FFFFFFF


@triton.jit
def keys_of(logits, rows, experts, valid, EXPERTS: tl.constexpr, WIDE: tl.constexpr):
    """Integers in the order of the logits, equal ones in falling order of expert: (rows, experts)."""
    at = logits + rows[:, None] * EXPERTS + experts[None, :]
    mask = valid[:, None] & (experts < EXPERTS)[None, :]
    # Past the first level of cache: `few` reads logits before its predecessor has ended.
    value = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    if WIDE:
        keys = (bits.to(tl.int64) << 32) | (0x1FFF - experts)[None, :].to(tl.int64)
    else:
        # A 16-bit float leaves the 13 low bits free.
        keys = (bits & ~0x1FFF) | (0x1FFF - experts)[None, :]
    return tl.where((experts < EXPERTS)[None, :], keys, lowest(WIDE))


@triton.jit
def expert_of(key):
    return 0x1FFF - (key & 0x1FFF).to(tl.int32)


@triton.jit
def logit_of(key, WIDE: tl.constexpr):
    if WIDE:
        bits = (key >> 32).to(tl.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    else:
        bits = (key ^ ((key >> 31) & 0x7FFFFFFF)) & ~0x1FFF
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def without(keys, best, WIDE: tl.constexpr):
    """`keys` with those that equal `best` (one a row) moved to the end."""
    return tl.where(keys == best, lowest(WIDE), keys)


@triton.jit
def choose(
    keys, EXPERTS: tl.constexpr, TOP_K: tl.constexpr, SLOTS: tl.constexpr, NORMALIZE: tl.constexpr, WIDE: tl.constexpr
):
    """Experts and weights, both (rows, SLOTS), and each expert's slot or -1, (rows, experts)."""
    slots = tl.arange(0, SLOTS)[None, :]
    ids = tl.zeros([keys.shape[0], SLOTS], tl.int32)
    weights = tl.zeros([keys.shape[0], SLOTS], tl.float32)
    owner = tl.full([keys.shape[0], keys.shape[1]], -1, tl.int32)
    top = logit_of(tl.max(keys, axis=1, keep_dims=True), WIDE)
    if not NORMALIZE:
        all_of = tl.exp(logit_of(keys, WIDE) - top)
        real = (tl.arange(0, keys.shape[1]) < EXPERTS)[None, :]
        total = tl.sum(tl.where(real, all_of, 0.0), axis=1, keep_dims=True)
    for slot in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1, keep_dims=True)
        owner = tl.where(keys == best, slot, owner)
        ids = tl.where(slots == slot, expert_of(best), ids)
        weights = tl.where(slots == slot, tl.exp(logit_of(best, WIDE) - top), weights)
        keys = without(keys, best, WIDE)
    if NORMALIZE:
        total = tl.sum(weights, axis=1, keep_dims=True)
    return ids, weights / total, owner


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    logits, ids, weights, counts, tokens,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, NORMALIZE: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, E: tl.constexpr, SLOTS: tl.constexpr, COUNT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose for ROWS tokens; with COUNT also how often each expert was chosen among them."""
    begin(PDL)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    experts, slots = tl.arange(0, E), tl.arange(0, SLOTS)
    valid = rows < tokens
    keys = keys_of(logits, rows, experts, valid, EXPERTS, WIDE)
    chosen, share, owner = choose(keys, EXPERTS, TOP_K, SLOTS, NORMALIZE, WIDE)
    at = rows[:, None] * TOP_K + slots[None, :]
    stored = valid[:, None] & (slots < TOP_K)[None, :]
    tl.store(ids + at, chosen, mask=stored)
    tl.store(weights + at, share, mask=stored)
    if COUNT:
        members = ((owner >= 0) & valid[:, None]).to(tl.int32)
        tl.store(counts + tl.program_id(0) * EXPERTS + experts, tl.sum(members, axis=0), mask=experts < EXPERTS)


@triton.jit
def _slots(ids, rows, tokens, TOP_K: tl.constexpr, E: tl.constexpr):
    """Which slot each expert has of each token, (rows, experts); -1 where it has none."""
    experts = tl.arange(0, E)
    owner = tl.full([rows.shape[0], E], -1, tl.int32)
    for slot in tl.static_range(TOP_K):
        chosen = tl.load(ids + rows * TOP_K + slot, mask=rows < tokens, other=-1)
        owner = tl.where(chosen[:, None] == experts[None, :], slot, owner)
    return owner


@triton.jit(do_not_specialize=["tokens"])
def _count_kernel(
    ids, counts, tokens,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """How often each expert was chosen among ROWS tokens."""
    begin(PDL)
    rows, experts = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, E)
    members = (_slots(ids, rows, tokens, TOP_K, E) >= 0).to(tl.int32)
    tl.store(counts + tl.program_id(0) * EXPERTS + experts, tl.sum(members, axis=0), mask=experts < EXPERTS)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _sort_kernel(
    ids, counts, entries, ends, tile_expert, tile_start, tokens, tiles,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write the entries of ROWS tokens where the sort by expert puts them, and a share of the list of tiles.

    Every block adds up the counts of all blocks by itself, which spares a launch.
    """
    begin(PDL)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    experts = tl.arange(0, E)
    found_all = tl.zeros([CHUNK, E], tl.int32)
    found_before = tl.zeros([CHUNK, E], tl.int32)
    for done in range(0, blocks, CHUNK):
        others = done + tl.arange(0, CHUNK)
        mask = (others < blocks)[:, None] & (experts < EXPERTS)[None, :]
        found = tl.load(counts + others[:, None] * EXPERTS + experts[None, :], mask=mask, other=0)
        found_all += found
        found_before += tl.where((others < block)[:, None], found, 0)
    total, before = tl.sum(found_all, axis=0), tl.sum(found_before, axis=0)
    starts = tl.cumsum(total, 0) - total
    rows = block * ROWS + tl.arange(0, ROWS)
    owner = _slots(ids, rows, tokens, TOP_K, E)
    member = owner >= 0
    order = (starts + before)[None, :] + tl.cumsum(member.to(tl.int32), 0) - 1
    tl.store(entries + order, rows[:, None] * TOP_K + owner, mask=member)
    if block == 0:
        tl.store(ends + experts, starts + total, mask=experts < EXPERTS)
    # The list of tiles, 32 at a time; -1 past the last.
    per_expert = (total + TILE - 1) // TILE
    last = tl.cumsum(per_expert, 0)
    offset = starts - (last - per_expert) * TILE
    for done in range(block * 32, tiles, blocks * 32):
        index = done + tl.arange(0, 32)
        mine = tl.sum((last[None, :] <= index[:, None]).to(tl.int32), axis=1)
        start = tl.sum(tl.where(experts[None, :] == mine[:, None], offset[None, :], 0), axis=1) + index * TILE
        tl.store(tile_expert + index, tl.where(mine < EXPERTS, mine, -1), mask=index < tiles)
        tl.store(tile_start + index, start, mask=index < tiles)


def routing(spec: RouteSpec, logits: Tensor) -> dict[str, Any]:
    """Constants of all kernels that read logits."""
    wide = logits.dtype == torch.float32
    return {"EXPERTS": spec.experts, "TOP_K": spec.top_k, "WIDE": wide, "E": next_power_of_2(spec.experts)}


def refuses_route(spec: RouteSpec) -> str | None:
    if not spec.plain:
        return "chooses by a softmax alone, without groups, bias or scale"
    return refuses_sort(spec) or _refuses_dtype(spec)


def refuses_sort(spec: RouteSpec) -> str | None:
    """Why entries cannot be sorted; whatever they were chosen by."""
    many = spec.experts > MAX_EXPERTS
    return f"sorts at most {MAX_EXPERTS} experts, not {spec.experts}" if many else None


def _refuses_dtype(spec: RouteSpec) -> str | None:
    return None if spec.dtype in ("float32", "bfloat16", "float16") else f"cannot compare {spec.dtype}"


@provide("triton", route, refuses_route)
def triton_route(logits: Tensor, spec: RouteSpec, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `route`."""
    weights, ids, _ = _routed(logits.contiguous(), spec, rows=8, count=False)
    return weights, ids


def _routed(logits: Tensor, spec: RouteSpec, rows: int, count: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, experts and (with `count`) how often each expert was chosen in each block of `rows` tokens."""
    tokens, launch = logits.shape[0], device_of(logits.device).options
    ids = torch.empty(tokens, spec.top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, spec.top_k, dtype=torch.float32, device=logits.device)
    blocks = cdiv(tokens, rows)
    counts = torch.empty(blocks if count else 0, spec.experts, dtype=torch.int32, device=logits.device)
    if tokens:
        _route_kernel[(blocks,)](
            logits, ids, weights, counts, tokens,
            NORMALIZE=spec.normalize, ROWS=rows, SLOTS=next_power_of_2(spec.top_k), COUNT=count,
            num_warps=_warps(rows, spec), **routing(spec, logits), **launch,
        )  # fmt: skip
    return weights, ids, counts


@dataclass(frozen=True, slots=True)
class Sorted:
    """Entries (token * top_k + slot) by expert, cut into tiles.

    Attributes:
        weights: (tokens, top_k) float32.
        entries: (tokens * top_k,) int32, sorted by expert and then by token.
        ends: (experts,) int32, where each expert's entries end.
        tile_expert: (tiles,) int32, -1 for tiles that are not needed.
        tile_start: (tiles,) int32, the first of a tile's entries.
    """

    weights: Tensor
    entries: Tensor
    ends: Tensor
    tile_expert: Tensor
    tile_start: Tensor

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All but the weights, in the order in which kernels take them."""
        return self.entries, self.ends, self.tile_expert, self.tile_start


def _counted(logits: Tensor, spec: RouteSpec, rows: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `_routed` gives, for every way to choose."""
    if spec.plain:
        return _routed(logits, spec, rows, count=True)
    weights, ids = route.reference(logits, spec, bias)
    ids = ids.contiguous()
    counts = torch.empty(cdiv(len(ids), rows), spec.experts, dtype=torch.int32, device=ids.device)
    _count_kernel[(len(counts),)](
        ids, counts, len(ids), EXPERTS=spec.experts, TOP_K=spec.top_k, ROWS=rows, E=next_power_of_2(spec.experts),
        num_warps=_warps(rows, spec), **device_of(ids.device).options,
    )  # fmt: skip
    return weights, ids, counts


def sort(logits: Tensor, spec: RouteSpec, tile: int, bias: Tensor | None = None) -> Sorted:
    """Route every token, with the choice's bias, and sort the entries by expert, for tiles of `tile` entries."""
    tokens, launch = logits.shape[0], device_of(logits.device).options
    many = tokens * spec.top_k
    tiles = min(many, spec.experts + many // tile)
    entries, ends, expert, start = (
        torch.empty(n, dtype=torch.int32, device=logits.device) for n in (many, spec.experts, tiles, tiles)
    )
    rows = next((rows for most, rows in SORT_ROWS.items() if tokens <= most and not spec.batch_invariant), 64)
    weights, ids, counts = _counted(logits, spec, rows, bias)
    _sort_kernel[(counts.shape[0],)](
        ids, counts, entries, ends, expert, start, tokens, tiles,
        EXPERTS=spec.experts, TOP_K=spec.top_k, ROWS=rows, E=next_power_of_2(spec.experts), TILE=tile, CHUNK=32,
        num_warps=_warps(rows, spec), **launch,
    )  # fmt: skip
    return Sorted(weights, entries, ends, expert, start)


def _warps(rows: int, spec: RouteSpec) -> int:
    return 8 if rows * next_power_of_2(spec.experts) > 1 << 12 else 4
