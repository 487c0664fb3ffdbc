"""`InFlight`: a step that was launched, until the host asks what it brought.

Made by the runner, kept by the executor, which asks when the core commits the plan. Where grammars must know the tokens
of the step before, samples are drawn later than the model is run: as soon as that step's result is there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from quire.messages.plan import StepResult, TokenLogprobs
from quire.sampling.sampler import Sampler, Samples

Draw = Callable[[], Samples | None]


@dataclass(slots=True)
class InFlight:
    """A launched step. `result` waits for the device and brings to the host what was sampled."""

    step: int
    rows: list[int] = field(default_factory=list)
    samples: Samples | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    sampler: Sampler | None = None
    _result: StepResult | None = field(init=False, default=None)
    _before: "tuple[InFlight, Draw] | None" = field(init=False, default=None)
    _after: "InFlight | None" = field(init=False, default=None)

    @property
    def settled(self) -> bool:
        """Whether the host knows what was sampled."""
        return self._result is not None

    def follow(self, before: "InFlight", draw: Draw) -> None:
        """Samples are drawn when the result of `before` is there."""
        self._before, before._after = (before, draw), self

    def draw(self) -> None:
        """Draw what had to wait; if need be, wait for the step before."""
        if self._before is not None:
            (before, draw), self._before = self._before, None
            before._settle()
            self.samples = draw()

    def wait(self) -> None:
        """Wait until samples are on the host; if need be, for the step before."""
        self.draw()
        if self.samples is not None:
            self.samples.wait()

    def result(self) -> StepResult:
        """The step's result; empty on ranks that do not sample. The next step, if it waits for this one, draws."""
        found = self._settle()
        if self._after is not None:
            self._after.draw()
        return found

    def _settle(self) -> StepResult:
        if self._result is None:
            self.draw()
            self._result = self._read()
        return self._result

    def _read(self) -> StepResult:
        spoiled = [row for row, entries in self.prompt_logprobs.items() if not all(map(_finite, entries))]
        if self.samples is None:
            return StepResult(self.step, [], [], spoiled, prompt_logprobs=self.prompt_logprobs)
        tokens, bad, logprobs, errors = self.samples.to_host()
        bad += [row for row in spoiled if row not in bad]
        complete = self.sampler.advance(self.rows, tokens, errors) if self.sampler is not None else []
        return StepResult(self.step, self.rows, tokens, bad, logprobs, self.prompt_logprobs, errors, complete)


def _finite(entry: TokenLogprobs) -> bool:
    """Whether the logits behind an entry were: a row with NaN or an infinity has NaN everywhere."""
    return not math.isnan(entry.chosen)
