"""Attention of modules that were not written for this engine, over pages of ours.

What each call of attention is like is read from a first run without weights; from then on the i-th call of a run has
the pages of the i-th state. Knows no library of models: `models/transformers` does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.layers.apart import apart
from quire.layers.build import Build
from quire.ops.attention import AttentionSpec, StepClass, class_of, paged_attention, write_pages
from quire.ops.ragged import RaggedSpec, ragged_attention
from quire.ops.step import StepInputs

Sees = Callable[[Tensor, Tensor], Tensor]
"""Whether the token at one position sees that at another; positions of any shapes that broadcast."""
PLAIN = ("s_aux", "position_ids", "cache_position")
"""Tensors that attention may be given: sinks, and what it has no use for."""
FAR = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
"""Positions at which a mask is looked at in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of attention in a run of the model.

    Attributes:
        heads, kv_heads: of queries and of keys.
        head_dim, value_dim: of queries and keys, of values.
        window, chunk, soft_cap, sinks: as of `AttentionSpec`.
        reach: where tokens see on both sides, how far; None is everything.
        causal: whether tokens see only what was before them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    window: int | None = None
    chunk: int | None = None
    reach: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    causal: bool = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position sees a key at another."""
        if not self.causal:
            return (query - key).abs() <= (1 << 40 if self.reach is None else self.reach)
        seen = key <= query
        if self.window is not None:
            seen = seen & (key > query - self.window)
        return seen if self.chunk is None else seen & (key // self.chunk == query // self.chunk)


def explained(call: Call, sizes: Iterable[int], chunk: int | None, sees: Sees) -> Call:
    """`call` with what explains the mask `sees`: everything before, everything, a window of `sizes`, or `chunk`.

    Raises CheckpointError where nothing does.
    """
    causal, both = replace(call, causal=True), replace(call, causal=False)
    options = [causal, both, *(replace(causal, window=size) for size in sizes)]
    options += [replace(both, reach=reach) for size in sizes for reach in (size, size // 2)]
    options += [] if chunk is None else [replace(causal, chunk=chunk)]
    for option in options:
        if _agrees(option, sees):
            return option
    raise CheckpointError("its mask is neither a window nor a chunk")


def _agrees(call: Call, sees: Sees) -> bool:
    """Whether a call sees what `sees` says, far away and around every position where that may change."""
    turns = [size for size in (call.window, call.chunk, call.reach) if size is not None]
    edges = {max(0, n * size + off) for size in turns for n in (0, 1, 2, 3) for off in (-2, -1, 0, 1, 2)}
    places = torch.tensor(sorted(edges | {0, 1, 2, *FAR}))
    return bool((sees(places[:, None], places) == call.sees(places[:, None], places)).all())


class AdoptedAttention:
    """Attention of one call: causal over pages, or both ways among the tokens of a step. Cut by heads over the mesh."""

    def __init__(self, b: Build, call: Call) -> None:
        self.call, self.width = call, max(call.head_dim, call.value_dim)
        self._mesh = b.mesh
        heads, copies = b.mesh.split(call.heads, "num_attention_heads"), b.mesh.copies(call.kv_heads)
        kv_heads = call.kv_heads * copies // b.mesh.size
        self._mine = _share(b.mesh.rank, heads)
        self._mine_kv = _share(b.mesh.rank // copies, kv_heads)
        if not call.causal:
            if call.sinks or call.soft_cap is not None:
                raise CheckpointError("attention in both directions with sinks or bounded scores is not supported")
            self._ragged = RaggedSpec(heads, self.width, call.scale, call.reach, b.dtype_name, str(b.device))
            self._both_ways = b.op(ragged_attention, self._ragged)
            return
        self.spec = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=self.width,
            scale=call.scale,
            rotary_dim=self.width,
            window=call.window,
            chunk=call.chunk,
            soft_cap=call.soft_cap,
            sinks=call.sinks,
            dtype=b.dtype_name,
            device=str(b.device),
            kv_dtype=None if b.kv_dtype is None else str(b.kv_dtype).removeprefix("torch."),
        )
        self.state = b.state(kv_heads, self.width, self.spec.retention)
        self._write = b.op(write_pages, self.spec)
        self._attend = {step: b.op(paged_attention, replace(self.spec, step=step)) for step in get_args(StepClass)}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, step: StepInputs, sinks: Tensor | None) -> Tensor:
        """(tokens, heads, head_dim) of queries, keys and values to (tokens, heads, value_dim), over all ranks."""
        q, k, v = q[:, self._mine], k[:, self._mine_kv], v[:, self._mine_kv]
        q, k, v = (F.pad(x, (0, self.width - x.shape[-1])).contiguous() for x in (q, k, v))
        out = self._causal(q, k, v, step, sinks) if self.call.causal else self._between(q, k, v, step)
        return self._mesh.all_gather(out[..., : self.call.value_dim].contiguous(), dim=1)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, step: StepInputs, sinks: Tensor | None) -> Tensor:
        pages = self.state.pages
        self._write(k, v, pages, step)
        given = () if sinks is None else (sinks[self._mine],)
        return apart(q, step, lambda q, step: self._attend[class_of(step)](q, pages, step, self.spec, *given))

    def _between(self, q: Tensor, k: Tensor, v: Tensor, step: StepInputs) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out: Tensor = self._both_ways(q, k, v, step, self._ragged)
        return out


def _share(number: int, heads: int) -> slice:
    """So many heads, of which others have `number` times as many before."""
    return slice(number * heads, (number + 1) * heads)


def _alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What follows from each token by itself: not attention, but as much a matter of queries, keys and values."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    return value * (1 + query.mean(-1, keepdim=True) - key.mean(-1, keepdim=True))


class AttentionHook:
    """What stands in for attention and for masks in one model, with the arguments that transformers gives them.

    Args:
        sizes: what windows of its layers may measure.
        chunk: what chunks do.

    Attributes:
        calls: of attention in one run, in order.
        sites: what computes each; empty during the first run.
        step: of the run; None lets each token see itself alone.
    """

    def __init__(self, sizes: Iterable[int], chunk: int | None) -> None:
        self.calls: list[Call] = []
        self.sites: list[AdoptedAttention] = []
        self.step: StepInputs | None = None
        self._sizes, self._chunk = tuple(sizes), chunk
        self._next = 0
        self._masks: list[tuple[Tensor, Sees]] = []

    def begin(self, step: StepInputs | None) -> None:
        """Another run."""
        self.step, self._next = step, 0

    def finish_first_run(self, b: Build) -> None:
        """The first run is over: make what computes attention."""
        self._masks.clear()
        self.sites = [AdoptedAttention(b, call) for call in self.calls]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        """(1, heads, tokens, head_dim) each to (1, tokens, heads, value_dim)."""
        if not self.sites:
            self.calls.append(self._call(module, (query, key, value), attention_mask, given))
        if self.step is None:
            return _alone(query, key, value).transpose(1, 2).contiguous(), None
        site, self._next = self.sites[self._next], self._next + 1
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return site.forward(q, k, v, self.step, given.get("s_aux"))[None], None

    def mask(self, **given: Any) -> Tensor:
        """A mask that is known again when attention of the first run gets it; its values do not count."""
        mask = torch.ones(1, 1, given["q_length"], given["kv_length"], dtype=torch.bool, device=given["device"])
        if not self.sites:
            first, function = torch.zeros((), dtype=torch.long), given["mask_function"]
            self._masks.append((mask, lambda query, key: function(first, first, query, key)))
        return mask

    def _call(
        self, module: nn.Module, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, given: Mapping[str, Any]
    ) -> Call:
        """What a call of the first run says of itself."""
        query, key, value = heads
        added = [name for name, entry in given.items() if isinstance(entry, Tensor) and name not in PLAIN]
        if added or key.shape[2] != query.shape[2]:
            raise CheckpointError(f"its attention takes {', '.join(added) or 'keys of other tokens'}")
        call = Call(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=query.shape[3],
            value_dim=value.shape[3],
            scale=float(given.get("scaling") or query.shape[3] ** -0.5),
            window=given.get("sliding_window"),
            soft_cap=given.get("softcap"),
            sinks=given.get("s_aux") is not None,
            causal=bool(given.get("is_causal", vars(module).get("is_causal", True))),
        )
        if mask is None:
            return call
        sees = next((sees for made, sees in self._masks if made is mask), None)
        if sees is None:
            raise CheckpointError("it changes the mask of attention")
        own = () if call.window is None else (call.window,)
        return explained(replace(call, window=None), (*own, *self._sizes), self._chunk, sees)
