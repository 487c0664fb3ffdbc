"""`Backoff`: how long to wait before something that has died is started again. Pure arithmetic."""

MOST_S = 60.0


class Backoff:
    """Waits double from one death to the next; whatever has lived for long begins anew.

    Args:
        first_s: the wait after the first death.
        steady_s: who has served for so long did not die of being started.
        tries: deaths in a row after which there is no sense in going on.
    """

    def __init__(self, first_s: float, steady_s: float, tries: int) -> None:
        self._first_s = first_s
        self._steady_s = steady_s
        self._tries = tries
        self.deaths = 0

    def died(self, served_s: float | None) -> float | None:
        """How long to wait after a death, in seconds, or None to give up.

        Args:
            served_s: how long it had been serving; None if it never came to that.
        """
        if served_s is not None and served_s >= self._steady_s:
            self.deaths = 0
        self.deaths += 1
        if self.deaths >= self._tries and served_s is None:
            return None
        return min(MOST_S, self._first_s * 2.0 ** min(self.deaths - 1, 30))
