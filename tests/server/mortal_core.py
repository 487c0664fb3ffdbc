"""An engine core without a model that dies when it is told to: `python tests/server/mortal_core.py STEP_MS`.

Everything but the ranks is real: process, wire, scheduler. Tokens follow from the prompt alone, so whatever is
served twice is the same. Prompts that hold DEADLY kill the core at their second token, STICKY ones make it hang.
"""

import os
import signal
import sys
import time

from quire.engine import begin
from quire.engine.process import main
from quire.messages.plan import NewRow, StepPlan, StepResult
from quire.messages.state import Capacity, StateSpec
from tests.config.facts import CPU

STEP_S = float(sys.argv[1]) / 1000 if __name__ == "__main__" else 0.0
DEADLY, STICKY = 17, 18
FIRST, KINDS = 300, 1000


def token(prompt: list[int], position: int) -> int:
    """What comes at a position (of prompt and output together) after this prompt."""
    return FIRST + (sum(prompt) * 31 + position * 7) % KINDS


class Made:
    """A step that is over after STEP_S."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> None:
        time.sleep(STEP_S)

    def result(self) -> StepResult:
        return self._result


class MortalExecutor:
    """Ranks that remember prompts."""

    def __init__(self, spec: object) -> None:
        self._rows: dict[int, NewRow] = {}
        self._made: dict[int, int] = {}

    def load(self, progress: object) -> dict[str, str]:
        return {}

    def measure(self) -> Capacity:
        return Capacity(1 << 30, [StateSpec(16)])

    def allocate(self, layout: object) -> None:
        pass

    def step(self, plan: StepPlan) -> Made:
        for new in plan.new:
            self._rows[new.row], self._made[new.row] = new, len(new.token_ids)
        rows = [grant.row for grant in plan.grants if grant.samples]
        tokens = []
        for row in rows:
            new = self._rows[row]
            prompt = new.token_ids[: new.prompt_len]
            if self._made[row] > new.prompt_len:
                self._die(prompt)
            tokens.append(token(prompt, self._made[row]))
            self._made[row] += 1
        return Made(StepResult(plan.step, rows, tokens))

    def _die(self, prompt: list[int]) -> None:
        if DEADLY in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if STICKY in prompt:
            time.sleep(3600)

    def prepare(self, wanted: object, vocabulary: object) -> None:
        pass

    def stop(self) -> None:
        pass


if __name__ == "__main__":
    begin.detect = lambda device, kernels: CPU
    sys.exit(main(MortalExecutor))
