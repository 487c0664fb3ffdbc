"""`StepTimeModel`: how long a step will take, learnt from those before it, so that running streams keep their latency.

A step's seconds are modelled as `base + sized(P) + pair * W`: P tokens of prompts, each of which attends to those
before it, W pairs in all; what decoding takes is in `base`. `sized` is a table with a line for each size of step (four
per doubling), as the cost of a step may jump from one size to the next: on GPUs steps up to some size are recorded and
larger ones launched kernel by kernel. Between the largest size that is known to fit and the smallest that is known
not to, the middle is tried; what was not seen for long is forgotten, so that it is tried again. Pure: seconds come from
outside.
"""

from bisect import bisect_left
from dataclasses import dataclass

CAUTION = 0.9
"""Steps are planned for this share of the target; the model is never exact."""
LEAST_TOKENS = 16
"""A prompt goes on by at least so many tokens in a step, however late it is."""
FIRST_GUESS = 512
"""Before anything is known, so many tokens are taken to fill the target."""
SIZES = tuple(round(LEAST_TOKENS * 2 ** (step / 4)) for step in range(61))
FORGOTTEN = 1000
"""Steps with prompts after which a size that none of them had is forgotten."""
GAIN = 0.3
"""How far what is known moves towards what was seen."""
PAIRS = 1e7
"""About as many pairs as a step has, so that the fit works on numbers around one."""


@dataclass(slots=True)
class SizeCost:
    """What a size of step adds to the base, in seconds, and when it was last seen."""

    seconds: float
    seen: int


class StepTimeModel:
    """The model of one engine's steps.

    Args:
        target_s: seconds that a step may take while sequences stream.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._base = 0.0
        self._pair = 0.0
        self._costs: dict[int, SizeCost] = {}
        self._steps = 0
        self._table = self._filled()

    def observe(self, tokens: int, pairs: float, seconds: float) -> None:
        """A step with so many prompt tokens, and pairs of these with tokens before them, took so many seconds."""
        if not tokens:
            self._base += 0.1 * (seconds - self._base)
            return
        self._steps += 1
        number = size_class(tokens)
        if number in self._costs:
            self._correct(self._costs[number], pairs / PAIRS, seconds - self.predict(tokens, pairs))
        else:
            self._costs[number] = SizeCost(max(0.0, seconds - self._base - self._pair * pairs / PAIRS), self._steps)
        for old in [key for key, cost in self._costs.items() if self._steps - cost.seen > FORGOTTEN]:
            del self._costs[old]
        self._table = self._filled()

    def predict(self, tokens: int, pairs: float) -> float:
        """Seconds of such a step."""
        return self._base + self._table[size_class(tokens)] + self._pair * pairs / PAIRS

    def room_s(self) -> float:
        """Seconds for prompts in a step beside what decodes."""
        return max(0.0, CAUTION * self._target_s - self._base)

    def tokens(self, before: int, room_s: float) -> int:
        """Tokens of a prompt with `before` tokens computed that fit into `room_s` seconds; at least LEAST_TOKENS."""
        number = known = 0
        while number < len(SIZES) and self.cost_s(SIZES[number], before) <= room_s:
            known = number if number in self._costs else known
            number += 1
        return SIZES[max(known, (known + number) // 2 if number - known > 1 else 0)]

    def cost_s(self, tokens: int, before: int) -> float:
        """Seconds that so many tokens of a prompt add."""
        return self._table[size_class(tokens)] + self._pair * tokens * (before + tokens / 2) / PAIRS

    def _correct(self, cost: SizeCost, x: float, wrong: float) -> None:
        """Normalized least mean squares (Haykin, Adaptive Filter Theory, chapter 6)."""
        step = GAIN * wrong / (1 + x * x)
        cost.seconds = max(0.0, cost.seconds + step)
        cost.seen = self._steps
        self._pair = max(0.0, self._pair + step * x)

    def _filled(self) -> list[float]:
        """Seconds of each size; in proportion to the nearest smaller one that is known, or else to the smallest."""
        nearest = min(self._costs, default=None)
        if nearest is None:
            return [self._target_s * size / FIRST_GUESS for size in SIZES]
        table = []
        for number, size in enumerate(SIZES):
            nearest = number if number in self._costs else nearest
            table.append(self._costs[nearest].seconds * size / SIZES[nearest])
        return table


def size_class(tokens: int) -> int:
    """The number of the smallest size with room for so many tokens."""
    return min(bisect_left(SIZES, tokens), len(SIZES) - 1)
