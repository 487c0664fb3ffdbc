"""What a run of the GPU table finds: printed as it comes, kept for the table at the end, appended to the ledger."""

import argparse
import statistics
import time
from dataclasses import dataclass, field

from quire.base.interpreter import sources_of

from . import ledger, targets
from .bounds import Bound, Ceilings

CAUTION = 3.0
"""How many times vLLM's seconds a run is expected to take, before the first is measured."""


@dataclass(slots=True)
class Session:
    """One run of this script: what it may do, how much time is left, and what it has found."""

    args: argparse.Namespace
    ceilings: Ceilings
    machine: str
    started: float = field(default_factory=time.monotonic)
    slowness: float = CAUTION
    experts: float | None = None
    rows: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds of the budget."""
        return float(self.args.budget_s) - (time.monotonic() - self.started)

    @property
    def quantization(self) -> str | None:
        """How the weights are stored, where it is not in 16 bits."""
        found = self.args.checkpoint or self.args.settings.get("quantization")
        return None if found is None else str(found)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one cell: values in the cell's metric, what the ceilings allow, seconds of its phases."""

    model: str
    workload: str
    engine: str
    values: list[float]
    bound: float | None = None
    allowed: Bound | None = None
    phases: dict[str, float] | None = None


def report(session: Session, figure: Figure) -> None:
    """Print a figure, keep it for the table, append it to the ledger."""
    args = session.args
    metric, unit = targets.metric(figure.workload)
    better = min if unit == "s" else max
    value, median = better(figure.values), statistics.median(figure.values)
    cache = args.settings.get("kv_cache_dtype")
    cell = targets.FP8_MIXED if cache == "fp8" and figure.workload == "mixed" else figure.workload
    meant = session.quantization is None and (cache in (None, "auto") or cell == targets.FP8_MIXED)
    target = targets.TARGETS[figure.model].get(cell) if meant else None
    session.rows.append(
        f"{figure.model:<14} {figure.engine.split()[0]:<6} {cell:<20}{number(value):>10}{number(median):>10}"
        f"{number(figure.bound):>10}"
        + "".join(f"{number(v):>10}" for v in ((target.vllm, target.floor, target.aim) if target else ()))
        + (verdict(value, target, unit) if target else "")
    )
    print(session.rows[-1], flush=True)
    line = {
        "commit": args.commit,
        "machine": session.machine,
        "engine": figure.engine,
        "model": figure.model,
        "quantization": session.quantization,
        "kv_cache_dtype": cache,
        "workload": figure.workload,
        "metric": metric,
        "value": significant(value),
        "unit": unit,
        "median": significant(median),
        "runs": len(figure.values),
        "command": ledger.command(),
        "ceilings": {"read_TB_s": session.ceilings.read / 1e12, "bf16_TFLOP_s": session.ceilings.matrix / 1e12},
    }
    if figure.allowed is not None and figure.bound is not None:
        allowed = figure.allowed
        line |= {"bound": significant(figure.bound), "bound_GB": significant(allowed.nbytes / 1e9)}
        line |= {"bound_TFLOP": significant(allowed.operations / 1e12)}
    if figure.phases is not None:
        line["phases"] = {phase: significant(seconds) for phase, seconds in figure.phases.items()}
        # Where Python keeps none, each start compiles all of torch's sources anew.
        line["bytecode_kept"] = sources_of("torch") is None
    if session.experts is not None:
        line["distinct_experts"] = significant(session.experts)
    ledger.append(args.ledger, line)


def verdict(value: float, target: targets.Target, unit: str) -> str:
    """Where a value stands: short of the floor, above it, or at the aim."""
    sign = -1 if unit == "s" else 1
    if value * sign >= target.aim * sign:
        return "  aim reached"
    return "  ok" if value * sign >= target.floor * sign else f"  {value / target.floor:.2f} of the floor"


def table(session: Session) -> str:
    """All figures of the run, one line each."""
    heads = ("fastest", "median", "bound", "vLLM 0.24", "floor", "aim")
    head = f"{'model':<14} {'engine':<6} {'workload':<20}" + "".join(f"{name:>10}" for name in heads)
    return "\n".join(["", head, *session.rows])


def number(value: float | None) -> str:
    """For the table: no more digits than say something."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def significant(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
