"""`InFlight`: a step that was launched, until the host asks what it brought.

Made by the runner, kept by the executor, which asks when the core settles the plan.
"""

import math
from dataclasses import dataclass, field

from quire.messages.plan import StepResult, TokenLogprobs
from quire.sampling.sampler import Sampler, Samples


@dataclass(slots=True)
class InFlight:
    """A launched step. `result` waits for the device and brings to the host what was sampled."""

    step: int
    rows: list[int] = field(default_factory=list)
    samples: Samples | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    sampler: Sampler | None = None

    def result(self) -> StepResult:
        """The step's result; empty on ranks that do not sample."""
        spoiled = [row for row, entries in self.prompt_logprobs.items() if not all(map(_finite, entries))]
        if self.samples is None:
            return StepResult(self.step, [], [], spoiled, prompt_logprobs=self.prompt_logprobs)
        tokens, bad, logprobs, errors = self.samples.to_host()
        bad += [row for row in spoiled if row not in bad]
        complete = self.sampler.advance(self.rows, tokens, errors) if self.sampler is not None else []
        return StepResult(self.step, self.rows, tokens, bad, logprobs, self.prompt_logprobs, errors, complete)


def _finite(entry: TokenLogprobs) -> bool:
    """Whether the logits behind an entry were: a row with NaN or an infinity has NaN everywhere."""
    return not math.isnan(entry.logprobs[0])
