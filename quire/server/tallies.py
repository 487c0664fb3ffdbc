"""Counters of several processes as one: what front ends have counted, added up. Plain values, no metrics library."""

from collections.abc import Iterable

from quire.messages.control import Tally

_Key = tuple[str, tuple[tuple[str, str], ...]]


def total(counted: Iterable[list[Tally]]) -> list[Tally]:
    """The sum of what several processes have counted; times of creation become the earliest."""
    families: dict[str, Tally] = {}
    values: dict[str, dict[_Key, float]] = {}
    for tallies in counted:
        for tally in tallies:
            families.setdefault(tally.name, tally)
            known = values.setdefault(tally.name, {})
            for name, labels, value in tally.samples:
                key = name, tuple(sorted(labels.items()))
                before = known.get(key)
                if before is None:
                    known[key] = value
                elif name.endswith("_created"):
                    known[key] = min(before, value)
                else:
                    known[key] = before + value
    return [
        Tally(name, family.about, family.kind, [(key[0], dict(key[1]), value) for key, value in values[name].items()])
        for name, family in families.items()
    ]
