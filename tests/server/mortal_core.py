"""An engine core without a model that dies when it is told to: `python tests/server/mortal_core.py STEP_MS BARRED`.

The file STEP_MS says how long a step takes; while there is a file BARRED, no core becomes ready. Everything but the
ranks is real: process, wire, scheduler. Tokens follow from the prompt alone, so whatever is served twice is the same.
Prompts that hold DEADLY kill the core at their second token, STICKY ones make it hang.
"""

import faulthandler
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from quire.engine import begin
from quire.engine.process import main
from quire.messages.plan import NewRow, StepPlan, StepResult
from quire.messages.state import Capacity, StateSpec
from tests.config.facts import CPU

STEP_MS, BARRED = map(Path, sys.argv[1:3] if __name__ == "__main__" else ("", ""))
DEADLY, STICKY = 17, 18
FIRST, KINDS = 300, 1000


def token(prompt: list[int], position: int) -> int:
    """What comes at a position (of prompt and output together) after this prompt."""
    return FIRST + (sum(prompt) * 31 + position * 7) % KINDS


class Made:
    """A step that takes its time."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> None:
        time.sleep(float(STEP_MS.read_text()) / 1000)

    def result(self) -> StepResult:
        return self._result


class MortalExecutor:
    """Ranks that remember prompts."""

    def __init__(self, spec: object) -> None:
        self._rows: dict[int, NewRow] = {}
        self._made: dict[int, int] = {}

    def load(self, progress: object) -> dict[str, str]:
        while BARRED.exists():
            time.sleep(0.01)
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

    def prepare(self, wanted: object, vocabulary: object, unused: object) -> None:
        pass

    def stop(self) -> None:
        pass


if __name__ == "__main__":
    begin.detect = lambda device, kernels: CPU
    # One that is asked what it does has hung: it says so and ends, and nobody need wait for it.
    faulthandler.register = partial(faulthandler.register, chain=True)
    sys.exit(main(MortalExecutor))
