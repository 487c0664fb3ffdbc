"""`SharedPrefixes`: whose page tables begin with the same pages, so that those may be read once for all of them.

A radix tree over page numbers, kept up to date as owners come, grow and leave: a change costs as much as the pages that
it brings, and what is not shared by many costs nothing more. It knows owners as keys only. One per cache group whose
rule keeps every token; `CacheGroup` makes it, the `pages` resource of the scheduler feeds and reads it.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


class Sharers(NamedTuple, Generic[Owner]):
    """Owners whose tables begin with the same `pages` pages."""

    pages: int
    owners: list[Owner]


class _Branch(Generic[Owner]):
    """A run of pages that all its owners have.

    Attributes:
        above: the run before it; None for the root, which is empty.
        pages: the run.
        end: pages from the start of the table to the end of the run.
        below: the runs that come next, by their first page.
        crowded: those of them with enough owners to matter.
        owners: everybody whose table goes through it; not kept for the root.
    """

    __slots__ = ("above", "below", "crowded", "end", "owners", "pages")

    def __init__(self, above: "_Branch[Owner] | None", pages: list[int], owners: dict[Owner, None]) -> None:
        self.above = above
        self.pages = pages
        self.end: int = len(pages) + (above.end if above else 0)
        self.below: dict[int, _Branch[Owner]] = {}
        self.crowded: dict[_Branch[Owner], None] = {}
        self.owners = owners


class SharedPrefixes(Generic[Owner]):
    """The tree.

    Args:
        least_owners: fewer do not count as sharing; at least 2.
        least_pages: shorter beginnings do not count; at least 1.

    Attributes:
        changed: whether `sharers` could answer something new.
    """

    def __init__(self, least_owners: int, least_pages: int) -> None:
        self._least_owners, self._least_pages = least_owners, least_pages
        self._root: _Branch[Owner] = _Branch(None, [], {})
        self._at: dict[Owner, _Branch[Owner]] = {}  # where each owner's table ends
        self.changed = False

    def enter(self, owner: Owner, pages: Sequence[int]) -> None:
        """A new owner, whose table begins with these pages."""
        self._at[owner] = self._root
        self.extend(owner, pages)

    def extend(self, owner: Owner, pages: Sequence[int]) -> None:
        """The table of `owner` goes on with these pages."""
        branch = self._at[owner]
        if len(branch.owners) == 1:
            branch.pages += pages  # its own leaf grows
            branch.end += len(pages)
            return
        at = 0
        while at < len(pages):
            below = branch.below.get(pages[at])
            if below is None:
                below = branch.below[pages[at]] = _Branch(branch, list(pages[at:]), {})
                at = len(pages)
            else:
                same = _common(below.pages, pages, at)
                below = below if same == len(below.pages) else _split(below, same)
                at += same
            below.owners[owner] = None
            if len(below.owners) == self._least_owners:
                branch.crowded[below] = None
            self._touch(below)
            branch = below
        self._at[owner] = branch

    def leave(self, owner: Owner) -> None:
        """Forget an owner."""
        branch = self._at.pop(owner)
        while (above := branch.above) is not None:
            self._touch(branch)
            del branch.owners[owner]
            if len(branch.owners) == self._least_owners - 1:
                del above.crowded[branch]
            if not branch.owners:
                del above.below[branch.pages[0]]
            else:
                _join(branch)
            branch = above

    def sharers(self) -> list[Sharers[Owner]]:
        """Groups of owners, nobody in two, that save most pages: n owners of k pages save (n - 1) * k.

        Where a part of a group shares still more, the group is cut into its parts if that saves more.
        """
        self.changed = False
        order = [self._root]
        for branch in order:  # grows: parents come before their children
            order += branch.crowded
        best: dict[_Branch[Owner], tuple[int, list[_Branch[Owner]]]] = {}
        for branch in reversed(order):
            parts = [best[below] for below in branch.crowded]
            saved = sum(part for part, _ in parts)
            own = (len(branch.owners) - 1) * branch.end if branch.end >= self._least_pages else 0
            if own and own >= saved:
                best[branch] = own, [branch]
            else:
                best[branch] = saved, [chosen for _, branches in parts for chosen in branches]
        return [Sharers(branch.end, list(branch.owners)) for branch in best[self._root][1]]

    def _touch(self, branch: _Branch[Owner]) -> None:
        if len(branch.owners) >= self._least_owners and branch.end >= self._least_pages:
            self.changed = True


def _common(run: list[int], pages: Sequence[int], start: int) -> int:
    """How many pages of `run` are also in `pages` from `start` on; the first is."""
    if run == pages[start : start + len(run)]:
        return len(run)
    return next((i for i, (a, b) in enumerate(zip(run, pages[start:], strict=False)) if a != b), len(pages) - start)


def _split(branch: _Branch[Owner], at: int) -> _Branch[Owner]:
    """Cut a run after `at` pages; returns the upper part. The lower one stays who it is: owners may end there."""
    above = branch.above
    assert above is not None, "the root has no run"
    upper = _Branch(above, branch.pages[:at], dict(branch.owners))
    above.below[branch.pages[0]] = upper
    if _replace(above, branch, upper):
        upper.crowded[branch] = None
    branch.above, branch.pages = upper, branch.pages[at:]
    upper.below[branch.pages[0]] = branch
    return upper


def _join(branch: _Branch[Owner]) -> None:
    """Make one run of `branch` and the one below it, if the same owners go through both."""
    if len(branch.below) != 1:
        return
    (below,) = branch.below.values()
    above = branch.above
    if above is None or len(below.owners) != len(branch.owners):
        return
    below.above, below.pages = above, branch.pages + below.pages
    above.below[branch.pages[0]] = below
    _replace(above, branch, below)


def _replace(above: _Branch[Owner], old: _Branch[Owner], new: _Branch[Owner]) -> bool:
    """`new` stands where `old` stood, with as many owners. Returns whether they are enough to matter."""
    if old not in above.crowded:
        return False
    del above.crowded[old]
    above.crowded[new] = None
    return True
