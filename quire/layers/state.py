"""`LayerState`, `RecurrentState`: what a layer keeps between steps, and what it declares of it.

How many bytes a token costs and which past tokens are needed is for the scheduler; the runner allocates and binds
pages; only the layer's op reads or writes them. Made by `Build.state` and `Build.recurrent`.
"""

from math import prod

import torch
from torch import Tensor

from quire.messages.state import RECURRENT, Retention, StateSpec
from quire.ops.attention import KVPages
from quire.ops.recurrent import StatePages


class LayerState:
    """Keys and values of one layer, in pages.

    Attributes:
        spec: what the scheduler must know.
        kv_heads, head_dim: of this rank's pools, `[pages, page_size, kv_heads, head_dim]` each.
        value_dim: of the second pool instead of `head_dim`.
        k_scale, v_scale: what values stored in 8 bits are worth, times themselves. A checkpoint may bring others than
            1; they count from the next `bind` on.
    """

    def __init__(
        self,
        kv_heads: int,
        dims: tuple[int, int],
        retention: Retention,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`dims`: `head_dim` and `value_dim`."""
        self.spec = StateSpec(sum(dims) * kv_heads * dtype.itemsize, retention)
        self.kv_heads, (self.head_dim, self.value_dim) = kv_heads, dims
        self.k_scale, self.v_scale = 1.0, 1.0
        self._dtype, self._device = dtype, device
        self._pages: KVPages | None = None

    def allocate(self, pages: int, page_size: int) -> tuple[Tensor, Tensor]:
        """New pools for keys and values. Only page 0, which padding reads, is cleared: the rest of a CPU's pools takes
        no memory before it is written.
        """
        k, v = (
            torch.empty((pages, page_size, self.kv_heads, dim), dtype=self._dtype, device=self._device)
            for dim in (self.head_dim, self.value_dim)
        )
        k[0].zero_()
        v[0].zero_()
        return k, v

    def bind(self, k: Tensor, v: Tensor, group: int) -> None:
        """Use these pools from now on, found through the page table of cache group `group`."""
        self._pages = KVPages(k, v, group, self.k_scale, self.v_scale)

    def unbind(self) -> None:
        """Forget the pools."""
        self._pages = None

    @property
    def pages(self) -> KVPages:
        """The bound pools and their group."""
        assert self._pages is not None, "the runner binds pages before the first step"
        return self._pages

    @property
    def k(self) -> Tensor:
        """The pool of keys."""
        return self.pages.k

    @property
    def v(self) -> Tensor:
        """The pool of values."""
        return self.pages.v

    @property
    def group(self) -> int:
        """Index of the cache group."""
        return self.pages.group

    @property
    def pools(self) -> tuple[Tensor, Tensor]:
        """What is bound, page by page."""
        return self.k, self.v


class RecurrentState:
    """The state of one layer that folds all past tokens into one: a page holds it whole, whatever the page's size.

    Attributes:
        spec: what the scheduler must know.
        conv: (width - 1, channels), of the layer's convolution on this rank, in the model's dtype.
        state: shape of what the recurrence keeps on this rank, float32: rounded after every token it would drift.
    """

    def __init__(self, conv: tuple[int, int], state: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.conv, self.state = conv, state
        self.spec = StateSpec(0, RECURRENT, prod(conv) * dtype.itemsize + prod(state) * torch.float32.itemsize)
        self._dtype, self._device = dtype, device
        self._pages: StatePages | None = None

    def allocate(self, pages: int, page_size: int) -> tuple[Tensor, Tensor]:
        """New pools: of the convolution's inputs and of states. Page 0, which padding reads, is cleared."""
        conv = torch.empty((pages, *self.conv), dtype=self._dtype, device=self._device)
        state = torch.empty((pages, *self.state), dtype=torch.float32, device=self._device)
        conv[0].zero_()
        state[0].zero_()
        return conv, state

    def bind(self, conv: Tensor, state: Tensor, group: int) -> None:
        """Use these pools from now on, found through the page table of cache group `group`."""
        self._pages = StatePages(conv, state, group)

    def unbind(self) -> None:
        """Forget the pools."""
        self._pages = None

    @property
    def pages(self) -> StatePages:
        """The bound pools and their group."""
        assert self._pages is not None, "the runner binds pages before the first step"
        return self._pages

    @property
    def pools(self) -> tuple[Tensor, Tensor]:
        """What is bound, page by page."""
        return self.pages.conv, self.pages.state

    @property
    def group(self) -> int:
        """Index of the cache group."""
        return self.pages.group
