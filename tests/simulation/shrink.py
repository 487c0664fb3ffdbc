"""From a scenario that fails to a small one that fails in the same way: leave things out as long as it does."""

import traceback
from collections.abc import Iterator

import msgspec

from tests.simulation.scenario import Ask, Scenario
from tests.simulation.world import live

PLAIN = {"fronts": 1, "depth": 1, "pages": 40, "window": None, "max_num_seqs": 6, "max_num_batched_tokens": 64}
"""What is tried for fields of a scenario, one by one."""


def failure(scenario: Scenario) -> str | None:
    """The first line of what goes wrong; None if nothing does."""
    try:
        live(scenario)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def shrunk(scenario: Scenario, error: str) -> Scenario:
    """A scenario that fails with an error of the same kind, and of which nothing more can be left out."""
    kind = _kind(error)
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(scenario):
            found = failure(candidate)
            if found is not None and _kind(found) == kind:
                scenario, smaller = candidate, True
                break
    return scenario


def story(scenario: Scenario) -> str:
    """The scenario as JSON, and what happens in it."""
    events = [msgspec.json.encode(event).decode() for event in scenario.events]
    text = "\n".join([msgspec.json.encode(msgspec.structs.replace(scenario, events=())).decode(), *events])
    try:
        live(scenario)
    except Exception as error:
        last = traceback.format_tb(error.__traceback__)[-1]
        return "\n".join([text, *error.__notes__, last, f"{type(error).__name__}: {error}"])
    return text


def _kind(error: str) -> str:
    """What two failures for the same reason have in common: the words, without names and numbers."""
    return " ".join(word for word in error.split() if word.isalpha() or word.startswith("N"))


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    events = scenario.events
    size = len(events) // 2
    while size:
        for start in range(0, len(events), size):
            yield msgspec.structs.replace(scenario, events=events[:start] + events[start + size :])
        size //= 2
    for field, value in PLAIN.items():
        if getattr(scenario, field) != value:
            yield msgspec.structs.replace(scenario, **{field: value})
    for number, event in enumerate(events):
        for simpler in _simpler(event) if isinstance(event, Ask) else ():
            yield msgspec.structs.replace(scenario, events=[*events[:number], simpler, *events[number + 1 :]])


def _simpler(ask: Ask) -> Iterator[Ask]:
    plain = Ask(at=ask.at, id=ask.id, front=ask.front, prompt=ask.prompt, seed=ask.seed, max_tokens=ask.max_tokens)
    if ask != plain:
        yield plain
    for field in ask.__struct_fields__:
        if field not in ("at", "id", "front", "prompt", "seed", "max_tokens"):
            changed = msgspec.structs.replace(ask, **{field: getattr(plain, field)})
            if changed != ask:
                yield changed
    for length in (1, len(ask.prompt) // 2):
        if 0 < length < len(ask.prompt):
            yield msgspec.structs.replace(ask, prompt=ask.prompt[:length])
    if ask.max_tokens > 1:
        yield msgspec.structs.replace(ask, max_tokens=ask.max_tokens // 2)
