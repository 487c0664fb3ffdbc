"""What structured outputs cost: the share of a decode step that goes into masks, with every row of the batch masked.

    python benchmarks/structured.py [ROWS]

Runs the shipped model with a JSON schema in each of ROWS (64) requests, prints medians per step and appends them to
benchmarks/ledger/structured.jsonl. A model with a larger vocabulary has larger masks, and longer steps.
"""

import os
import statistics
import sys
import time

from lib import ledger

from quire import LLM, SamplingParams
from quire.messages.structured import StructuredOutputsParams
from quire.sampling.masks import Masks

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 40},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 20},
        "count": {"type": "integer"},
    },
    "required": ["name", "tags", "count"],
    "additionalProperties": False,
}


class Clock:
    """Seconds spent in calls of a function, by step."""

    def __init__(self) -> None:
        self.now = 0.0

    def around(self, call):
        """The same function, timed."""

        def timed(*args):
            start = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.now += time.perf_counter() - start

        return timed


def main(rows: int = 64) -> int:
    """Measure, print, record."""
    clock = Clock()
    Masks.apply, Masks.advance = clock.around(Masks.apply), clock.around(Masks.advance)
    params = SamplingParams(
        temperature=1.0,
        max_tokens=100,
        ignore_eos=True,
        structured_outputs=StructuredOutputsParams(json=SCHEMA),
    )
    steps: list[tuple[float, float]] = []
    with LLM(max_num_seqs=rows) as llm:
        llm.generate(["warm"], params, use_tqdm=False)
        ids = llm._submit([f"Prompt {i}" for i in range(rows)], [params] * rows, [0] * rows)
        while llm._core.scheduler.stats().running == rows or not steps:
            clock.now = 0.0
            start = time.perf_counter()
            llm._turn()
            steps.append((time.perf_counter() - start, clock.now))
        llm._drop(ids)
        steps = steps[len(steps) // 4 :]  # the first ones compute prompts
    step, mask = (statistics.median(times) for times in zip(*steps, strict=True))
    print(f"{rows} rows: step {step * 1e3:.2f} ms, of it masks {mask * 1e3:.2f} ms ({mask / step:.1%})")
    ledger.append(
        ledger.LEDGER / "structured.jsonl",
        {
            "commit": ledger.commit(),
            "machine": ledger.machine(),
            "model": "default",
            "metric": "masks per decode step, every row with a JSON schema",
            "rows": rows,
            "vocab": 4096,
            "mask_ms": round(mask * 1e3, 3),
            "step_ms": round(step * 1e3, 3),
            "share": round(mask / step, 4),
            "steps": len(steps),
            "load": round(os.getloadavg()[0], 1),
            "command": ledger.command(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
