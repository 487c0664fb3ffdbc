"""What structured outputs cost: a decode step whose rows all follow a JSON schema, beside one whose rows are free.

    python benchmarks/structured.py [--model llama-8b] [--rows 64]

Runs the shipped model, or one of a known shape with random weights and a vocabulary of bytes and letters. Prints
medians per step and appends them to benchmarks/ledger/structured.jsonl. Masks are filled while the device computes, so
what they take of the host's time is told beside what a step becomes longer. Texts are made in one step of sixteen,
which a median leaves out.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib import ledger, shapes

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
TOKENS = 100


class Clock:
    """Seconds spent in calls of a function, by step."""

    def __init__(self) -> None:
        self.now = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.now += time.perf_counter() - start

        return timed


def medians(llm: LLM, rows: int, clock: Clock, grammar: StructuredOutputsParams | None) -> tuple[float, float]:
    """Seconds of a step with `rows` sequences that decode, and those of the host's that masks took."""
    params = SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True, structured_outputs=grammar)
    llm.generate(["warm"], params, use_tqdm=False)
    ids = llm._submit([f"Prompt {i}" for i in range(rows)], [params] * rows, [0] * rows)
    steps: list[tuple[float, float]] = []
    while llm._core.scheduler.stats().running == rows or not steps:
        clock.now, start, number = 0.0, time.perf_counter(), llm._core.scheduler.stats().steps
        while llm._core.scheduler.stats().steps == number:
            llm._turn()
        steps.append((time.perf_counter() - start, clock.now))
    llm._drop(ids)
    step, mask = zip(*steps[len(steps) // 4 :], strict=True)  # the first ones compute prompts
    return statistics.median(step), statistics.median(mask)


def measure(model: str, rows: int, folder: Path) -> dict[str, float]:
    """Milliseconds of both kinds of steps."""
    clock = Clock()
    Masks.send, Masks.advance = clock.around(Masks.send), clock.around(Masks.advance)  # type: ignore[method-assign]
    known: dict[str, Any] = {}
    if model != "default":
        shapes.write_letters(shapes.write(model, folder), shapes.MODELS[model]["vocab_size"])
        known = {"model": str(folder / model), "load_format": "dummy", "max_model_len": 2048}
    with LLM(max_num_seqs=rows, **known) as llm:
        free, _ = medians(llm, rows, clock, None)
        bound, mask = medians(llm, rows, clock, StructuredOutputsParams(json=SCHEMA))
    return {"free_step_ms": 1e3 * free, "step_ms": 1e3 * bound, "mask_ms": 1e3 * mask, "overhead": bound / free - 1}


def main() -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="default", help="default, or one of " + ", ".join(shapes.MODELS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--commit", default=ledger.commit(), help="what is measured, where git cannot tell")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.model, args.rows, Path(folder))
    print(f"{args.model}, {args.rows} rows:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    line = {"commit": args.commit, "machine": ledger.machine(), "model": args.model, "rows": args.rows}
    figures = {name: round(value, 4) for name, value in found.items()}
    load = round(os.getloadavg()[0], 1)
    ledger.append(
        ledger.LEDGER / "structured.jsonl",
        {
            **line,
            "metric": "step with a JSON schema in every row",
            **figures,
            "load": load,
            "command": ledger.command(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
