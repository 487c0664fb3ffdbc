"""Ops and their providers.

`@op(...)` on a reference function makes an `Op`: the definition, its sample inputs and the tolerance that every other
provider is held to. `provide("triton", op)` in a file of `kernels/` adds an implementation with the same signature.
`choose` picks one for a spec, and says why the others were refused.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Provider:
    """An implementation of an op. `refuses(spec)` returns None, or for people the reason why it cannot serve `spec`."""

    name: str
    function: Callable[..., Any]
    refuses: Callable[[Any], str | None]


@dataclass(slots=True)
class Op:
    """A named computation.

    Attributes:
        name: the reference function's name.
        reference: plain PyTorch; the definition.
        samples: makes the list of sample inputs `(spec, kwargs)`; kwargs go to the function, spec to `refuses`.
        tolerance: (relative, absolute) per dtype name, for other providers against the reference.
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
class Choice:
    """Which provider serves an op for a spec, and why those before it in the order do not."""

    op: str
    provider: str
    function: Callable[..., Any]
    refused: dict[str, str]


OPS: dict[str, Op] = {}
DEFAULT_TOLERANCE = {"float32": (1e-5, 1e-5), "bfloat16": (1.6e-2, 1e-2), "float16": (2e-3, 1e-3)}


def op(
    samples: Callable[[], Iterable[tuple[Any, dict[str, Any]]]],
    tolerance: dict[str, tuple[float, float]] | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """Make the decorated reference function an Op."""

    def define(reference: Callable[..., Any]) -> Op:
        made = Op(reference.__name__, reference, samples, tolerance or DEFAULT_TOLERANCE)
        made.providers[REFERENCE] = Provider(REFERENCE, reference, lambda spec: None)
        OPS[made.name] = made
        return made

    return define


def provide(
    name: str, target: Op, refuses: Callable[[Any], str | None] = lambda spec: None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the decorated function as provider `name` of `target`."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        target.providers[name] = Provider(name, function, refuses)
        return function

    return add


def load_providers(names: Sequence[str]) -> None:
    """Import the kernel folders called `names`; the reference needs none."""
    for name in names:
        if name != REFERENCE:
            importlib.import_module(f"quire.kernels.{name}")


def choose(target: Op, spec: Any, order: Sequence[str]) -> Choice:
    """The first provider in `order` (the reference is always last) that has `target` and does not refuse `spec`."""
    refused: dict[str, str] = {}
    for name in [*order, REFERENCE]:
        provider = target.providers.get(name)
        reason = "not implemented" if provider is None else provider.refuses(spec)
        if provider is not None and reason is None:
            return Choice(target.name, name, provider.function, refused)
        refused[name] = str(reason)
    raise AssertionError("the reference refuses nothing")
