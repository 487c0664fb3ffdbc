"""What a layer keeps between steps, and for how long: the one rule that decides paging, freeing and prefix hits.

A layer declares a `StateSpec`. Layers with equal specs form a cache group; every group has pages of its own.
"""

import msgspec


class Retention(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which past tokens a layer still needs.

    Attributes:
        window: None keeps everything; W keeps the last W - 1 tokens before the one being computed (sliding window);
            2 (see RECURRENT) is recurrent state, where only the state after the previous token matters.
        sink: tokens at the start that are never dropped.
        chunk: attention never looks past the last multiple of `chunk` (chunked-local attention).
    """

    window: int | None = None
    sink: int = 0
    chunk: int | None = None

    def first_needed(self, n: int) -> int:
        """To compute token `n` (counted from 0), the first past token whose state is needed, sinks aside."""
        if self.chunk is not None:
            return n // self.chunk * self.chunk
        return 0 if self.window is None else max(0, n - self.window + 1)


class StateSpec(msgspec.Struct, frozen=True):
    """What one layer keeps.

    Attributes:
        bytes_per_token: paged state of one token on one rank (K and V together), in bytes.
        retention: which past tokens are needed.
        bytes_per_state: of recurrent state, which does not grow with its tokens; 0 for state that is kept by token. A
            page then holds one state: that after the last computed token of those that the page stands for.
    """

    bytes_per_token: int
    retention: Retention = Retention()
    bytes_per_state: int = 0

    @property
    def recurrent(self) -> bool:
        """Whether all past tokens are folded into one state."""
        return self.bytes_per_state > 0

    def page_bytes(self, page_size: int) -> int:
        """Bytes that one layer keeps in a page of so many tokens."""
        return self.bytes_per_token * page_size + self.bytes_per_state


RECURRENT = Retention(window=2)
"""Of recurrent state: to compute a token, that after the token before it."""


class GroupLayout(msgspec.Struct, frozen=True):
    """The pages of one cache group: layers whose StateSpec is the same share page numbers.

    Attributes:
        spec: what each layer of the group keeps.
        layers: how many layers.
        page_size: tokens per page.
        pages: how many pages, page 0 included. Page 0 is never given out: padded rows write there and nobody reads it.
    """

    spec: StateSpec
    layers: int
    page_size: int
    pages: int

    def __str__(self) -> str:
        if not self.spec.recurrent:
            return f"{self.pages} pages of {self.page_size} tokens"
        return f"{self.pages} recurrent states of {self.spec.bytes_per_state * self.layers / 1e6:.3g} MB"


class Capacity(msgspec.Struct, frozen=True):
    """What a rank reports once weights are loaded and the worst step was measured.

    Attributes:
        free_bytes: memory that pages may take.
        states: the spec of each stateful layer, in layer order.
        recordable: whether every kernel of the model can be recorded.
    """

    free_bytes: int
    states: list[StateSpec]
    recordable: bool = False


class Layout(msgspec.Struct, frozen=True):
    """How a rank's state memory is cut. `groups` are in order of their first layer; `max_model_len` is what fits."""

    groups: list[GroupLayout]
    max_model_len: int
