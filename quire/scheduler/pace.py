"""`Pace`: how long a step will take, learnt from those that were taken, so that running streams keep their latency.

A step's seconds are modelled as `base + token * P + pair * W`: P tokens of prompts, each of which attends to those
before it, W pairs in all; what decoding takes is in `base`. Steps without prompts move the base alone; from the others
all three are fitted by recursive least squares with exponential forgetting (Haykin, Adaptive Filter Theory, chapter
10). Pure: seconds come from outside.
"""

FORGETTING = 0.98
"""Weight of a step against the next one: some fifty steps are remembered."""
CAUTION = 0.9
"""Steps are planned for this share of the target; the model is never exact."""
LEAST_TOKENS = 16
"""A prompt goes on by at least so many tokens in a step, however late it is."""
FIRST_GUESS = 512
"""Before anything is known, so many tokens are taken to fill the target."""
SCALES = (1.0, 1e3, 1e7)
"""Sizes of the model's inputs, so that the fit works on numbers around one."""

Vector = tuple[float, float, float]


class Pace:
    """The model of one engine's steps.

    Args:
        target_s: seconds that a step may take while sequences stream.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._theta = [0.0, target_s / FIRST_GUESS * SCALES[1], 0.0]
        spread = (target_s**2, (10 * self._theta[1]) ** 2, (10 * self._theta[1]) ** 2)
        self._spread = [[spread[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        # Seconds are known to about a twentieth of the target.
        self._noise = (0.05 * target_s) ** 2

    def observe(self, tokens: int, pairs: float, seconds: float) -> None:
        """A step with so many prompt tokens, and pairs of these with tokens before them, took so many seconds."""
        if not tokens:
            self._theta[0] += 0.1 * (seconds - self._theta[0])
            return
        x = _inputs(tokens, pairs)
        reach = [sum(row[j] * x[j] for j in range(3)) for row in self._spread]
        weight = FORGETTING * self._noise + sum(x[i] * reach[i] for i in range(3))
        wrong = seconds - self.predict(tokens, pairs)
        for i in range(3):
            self._theta[i] += reach[i] / weight * wrong
            for j in range(3):
                self._spread[i][j] = (self._spread[i][j] - reach[i] * reach[j] / weight) / FORGETTING

    def predict(self, tokens: int, pairs: float) -> float:
        """Seconds of such a step."""
        return sum(value * each for value, each in zip(self._theta, _inputs(tokens, pairs), strict=True))

    def room_s(self) -> float:
        """Seconds for prompts in a step beside what decodes."""
        return max(0.0, CAUTION * self._target_s - max(0.0, self._theta[0]))

    def tokens(self, before: int, room_s: float) -> int:
        """Tokens of a prompt with `before` tokens computed that fit into `room_s` seconds; at least LEAST_TOKENS."""
        each = max(1e-9, self._theta[1] / SCALES[1] + max(0.0, self._theta[2]) / SCALES[2] * before)
        return max(LEAST_TOKENS, int(room_s / each))

    def cost_s(self, tokens: int, before: int) -> float:
        """Seconds that so many tokens of a prompt add."""
        return max(0.0, self.predict(tokens, tokens * (before + tokens / 2)) - self._theta[0])


def _inputs(tokens: int, pairs: float) -> Vector:
    return (1.0, tokens / SCALES[1], pairs / SCALES[2])
