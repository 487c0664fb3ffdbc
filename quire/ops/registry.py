"""Ops and their providers.

`@op(...)` on a reference function makes an `Op`: the definition, its sample inputs and the tolerance that every other
provider is held to. `provide("triton", op)` in a file of `kernels/` adds an implementation with the same signature.
`choose` picks one for a spec, or one for each range of token counts, and says why the others were refused.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import ConfigError

REFERENCE = "reference"
BUCKETS = ((0, 1), (2, 4), (5, 16), (17, 64), (65, 128), (129, None))
"""Ranges of token counts that may be served by different providers: first and last; None has no end."""

Tokens = tuple[int, int | None]
"""A range of token counts, both ends included; None has no end."""
ANY: Tokens = (0, None)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What steps can be like.

    Attributes:
        tokens: most of a step.
        length: longest sequence, in tokens.
        page_size: tokens per page.
    """

    tokens: int
    length: int
    page_size: int


Start = Callable[[Any, Sizes], None]
"""Makes, for a spec, all that calls will need: called once, beside the loading of weights, from another thread."""


@dataclass(frozen=True, slots=True)
class Provider:
    """An implementation of an op.

    Attributes:
        refuses: `refuses(spec)` returns None, or for people the reason why it cannot serve `spec`.
        capturable: whether a graph may record it: it asks the host nothing and its shapes depend on shapes alone.
        tokens: the token counts that it is worth using for; it is chosen for buckets that lie within.
        start: None where nothing need be made before the first call.
        batch_invariant: whether what it makes of a token depends, to the last bit, on nothing else in the step; where
            the spec (of experts: their route) has a field of that name, if that is set.
    """

    name: str
    function: Callable[..., Any]
    refuses: Callable[[Any], str | None]
    capturable: bool = True
    tokens: Callable[[Any], Tokens] = lambda spec: ANY
    start: Start | None = None
    batch_invariant: bool = False


@dataclass(slots=True)
class Op:
    """A named computation.

    Attributes:
        name: the reference function's name.
        reference: plain PyTorch; the definition.
        samples: makes the list of sample inputs `(spec, kwargs)`; kwargs go to the function, spec to `refuses`.
        tolerance: (relative, absolute) per dtype name, for other providers against the reference; under
            "bfloat16 float32" that of float32 tensors where the spec's dtype is bfloat16, if it is another.
        providers: by name; the reference is one of them.
    """

    name: str
    reference: Callable[..., Any]
    samples: Callable[[], Iterable[tuple[Any, dict[str, Any]]]]
    tolerance: dict[str, tuple[float, float]]
    providers: dict[str, Provider] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the reference."""
        return self.reference(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Served:
    """Token counts `first` to `last` (None: and all above) of an op are served by `function` of `provider`."""

    first: int
    last: int | None
    provider: str
    function: Callable[..., Any]
    capturable: bool = True

    def __str__(self) -> str:
        reach = f"{max(self.first, 1)}+" if self.last is None else f"{max(self.first, 1)}-{self.last}"
        return f"{self.provider} ({'1' if reach == '1-1' else reach} tokens)"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which providers serve an op for a spec, and why those before them in the order do not.

    Attributes:
        provider: its name; with several, each with its range of tokens.
        function: takes the op's arguments by position. With several providers it looks at the number of rows of the
            first tensor; with one it is that provider's function itself.
        refused: provider to reason.
        table: who serves which token counts, smallest first.
        capturable: whether a graph may record it, with any number of tokens.
        starts: what to call before the first step, each with the spec.
        batch_invariant: whether one provider serves all steps, and is that.
        spec: what they were chosen for.
    """

    op: str
    provider: str
    function: Callable[..., Any]
    refused: dict[str, str]
    table: tuple[Served, ...] = ()
    capturable: bool = True
    starts: tuple[tuple[Start, Any], ...] = ()
    batch_invariant: bool = False
    spec: Any = None


OPS: dict[str, Op] = {}
DEFAULT_TOLERANCE = {
    "float32": (1e-5, 1e-5),
    "bfloat16": (1.6e-2, 1e-2),
    "float16": (2e-3, 1e-3),
    # A unit in the last place.
    "float8_e4m3fn": (0.125, 2**-9),
    "float8_e5m2": (0.25, 2**-16),
}


def op(
    samples: Callable[[], Iterable[tuple[Any, dict[str, Any]]]],
    tolerance: dict[str, tuple[float, float]] | None = None,
    capturable: bool = True,
    batch_invariant: bool = False,
) -> Callable[[Callable[..., Any]], Op]:
    """Make the decorated reference function an Op."""

    def define(reference: Callable[..., Any]) -> Op:
        made = Op(reference.__name__, reference, samples, tolerance or DEFAULT_TOLERANCE)
        made.providers[REFERENCE] = Provider(
            REFERENCE, reference, lambda spec: None, capturable, batch_invariant=batch_invariant
        )
        OPS[made.name] = made
        return made

    return define


def provide(
    name: str,
    target: Op,
    refuses: Callable[[Any], str | None] = lambda spec: None,
    capturable: bool = True,
    tokens: Tokens | Callable[[Any], Tokens] = ANY,
    start: Start | None = None,
    batch_invariant: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the decorated function as provider `name` of `target`, worth using for `tokens` (may depend on the spec)."""
    worth = tokens if callable(tokens) else lambda spec: tokens

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        target.providers[name] = Provider(name, function, refuses, capturable, worth, start, batch_invariant)
        return function

    return add


def load_providers(names: Sequence[str]) -> None:
    """Import the kernel folders called `names`; the reference needs none."""
    for name in names:
        if name != REFERENCE:
            importlib.import_module(f"quire.kernels.{name}")


def choose(
    target: Op, spec: Any, order: Sequence[str], last: Provider | None = None, deterministic: bool = False
) -> Choice:
    """The first provider in `order` that has `target` and does not refuse `spec`, for each bucket of tokens.

    `last` serves what the others leave; it is the reference unless given. `deterministic` passes over those whose
    results depend on the batch; `last` may be one.
    """
    last = last or target.providers[REFERENCE]
    refused: dict[str, str] = {}
    able: list[tuple[Provider, Tokens]] = []
    for name in order:
        provider = target.providers.get(name)
        reason = "not implemented" if provider is None else provider.refuses(spec)
        if provider is not None and reason is None and deterministic:
            reason = _varies(provider, spec)
        if provider is None or reason is not None:
            refused[name] = str(reason)
            continue
        able.append((provider, provider.tokens(spec)))
        if able[-1][1] == ANY:
            break
    able.append((last, ANY))
    chosen = [next(p for p, tokens in able if _within(bucket, tokens)) for bucket in BUCKETS]
    table = _merged(chosen)
    name = table[0].provider if len(table) == 1 else ", ".join(map(str, table))
    starts = tuple((provider.start, spec) for provider, _ in able if provider.start is not None)
    return Choice(
        target.name,
        name,
        _dispatch(table),
        refused,
        table,
        all(served.capturable for served in table),
        starts,
        len(table) == 1 and chosen[0].batch_invariant,
        spec,
    )


def check_choices(choices: Iterable[Choice], deterministic: bool) -> None:
    """Raise ConfigError where `deterministic` is asked for and a choice is not."""
    for choice in choices:
        if deterministic and not choice.batch_invariant:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.refused.items())
            raise ConfigError(
                f"deterministic: nothing computes {choice.op} of this model the same way in every batch on this device "
                f"({reasons}); serve it without, or another model"
            )


def _varies(provider: Provider, spec: Any) -> str | None:
    """Why a provider's results depend on the batch, or None."""
    if not provider.batch_invariant:
        return "results depend on the batch"
    return None if provider.tokens(spec) == ANY else "serves some numbers of tokens only"


def _within(bucket: Tokens, tokens: Tokens) -> bool:
    (first, last), (low, high) = bucket, tokens
    return low <= max(first, 1) and (high is None or (last is not None and last <= high))


def _merged(chosen: Sequence[Provider]) -> tuple[Served, ...]:
    table: list[Served] = []
    for (first, last), provider in zip(BUCKETS, chosen, strict=True):
        if table and table[-1].function is provider.function:
            first = table.pop().first
        table.append(Served(first, last, provider.name, provider.function, provider.capturable))
    return tuple(table)


def _dispatch(table: Sequence[Served]) -> Callable[..., Any]:
    if len(table) == 1:
        return table[0].function
    above = table[-1].first
    functions = [next(s.function for s in table if s.last is None or n <= s.last) for n in range(above + 1)]

    def dispatch(first: Any, *rest: Any) -> Any:
        return functions[min(first.shape[0], above)](first, *rest)

    return dispatch
