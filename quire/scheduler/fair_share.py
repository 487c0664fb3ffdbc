"""`FairShare`: whose turn it is. Requests of one owner keep their order; owners share what is served evenly.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a request's turn is the later of now, in virtual time, and the end of
its owner's last request; virtual time is the turn of whoever was served last. An owner who floods the queue moves its
own turns far into the future and nobody else's; with a single owner the order is that of arrival.
"""

MOST_OWNERS = 4096
"""Owners remembered beyond this number are looked through for those that owe nothing."""


class FairShare:
    """Gives every request its turn."""

    def __init__(self) -> None:
        self._now = 0
        self._ends: dict[str, int] = {}

    def take(self, owner: str, cost: int) -> int:
        """The turn of a new request of `owner` that costs so many tokens; smaller is served first."""
        turn = max(self._now, self._ends.get(owner, 0))
        if len(self._ends) >= MOST_OWNERS:
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}
        self._ends[owner] = turn + cost
        return turn

    def serve(self, turn: int) -> None:
        """A request with this turn begins to be served."""
        self._now = max(self._now, turn)
