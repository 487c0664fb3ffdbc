"""Measures the GPU table: three models with random weights on six workloads, and how soon an engine is ready.

    python benchmarks/gpu.py [--models qwen3-0.6b,llama-8b] [--workloads decode-1,mixed,ready] [--repeat 3]
                             [--budget-s 300] [--profile] [--ledger FILE] [--vllm]

Prints each figure beside vLLM's, what the ceilings measured in the same run allow, the floor and the aim; appends a
line per figure to the ledger. Every repetition has other tokens; nothing but the shared head of `prefix` can be cached.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from lib import ceilings, ledger, packed, shapes, targets
from lib.bounds import Replay
from lib.engines import CONTEXT, ENGINES, Engine, OutOfTimeError, Quire
from lib.report import CAUTION, Figure, Session, report, table

from quire.base.errors import QuireError
from quire.cli.bench import time_works
from quire.cli.workloads import SHAPES, Work, workload

READY = "ready"
ONCE = ("long", "mixed")
"""Workloads that run long enough for one repetition; their warm-up is a part of them."""
WARMUP_SEED = 99
CACHE = "TRITON_CACHE_DIR"
STRETCHES = {"prefill": (2, 8), "long": (4, 16), "mixed": (200, 60)}
"""Turns of workloads that are profiled: the first, and how many."""


def main() -> int:
    """Measure, print, record."""
    args = arguments()
    if not torch.cuda.is_available():
        print("no GPU: the GPU table cannot be measured here")
        return 0
    session = Session(args, ceilings.measure(torch.device("cuda")), machine())
    found = session.ceilings
    print(f"{session.machine}: read {found.read / 1e12:.2f} TB/s, bf16 {found.matrix / 1e12:.0f} TFLOP/s", flush=True)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        for model in args.models:
            try:
                measure_model(session, model, folder_of(args, model, Path(folder)))
            except Exception as error:  # the other models are worth measuring still
                print(f"{model}: failed, {type(error).__name__}: {error}", flush=True)
                traceback.print_exc(limit=-4)
            if args.vllm:
                beside(session, model)
    print(table(session))
    return 0


def folder_of(args: argparse.Namespace, model: str, parent: Path) -> Path:
    """The model's folder: a config alone, or a quantized checkpoint as tools write them."""
    if args.checkpoint is None:
        return shapes.write(model, parent)
    started = time.monotonic()
    folder = packed.write(args.checkpoint, model, parent)
    print(f"{model}: {args.checkpoint} written in {time.monotonic() - started:.1f} s", flush=True)
    return folder


def arguments() -> argparse.Namespace:
    """The command line."""

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=names, default=list(shapes.MODELS), help="of " + ", ".join(shapes.MODELS))
    parser.add_argument("--workloads", type=names, default=[*SHAPES, READY], help=f"of {', '.join(SHAPES)}, {READY}")
    parser.add_argument("--repeat", type=int, default=3, help=f"repetitions; {' and '.join(ONCE)} run once [3]")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="skip what does not fit in these seconds")
    parser.add_argument("--profile", action="store_true", help="show kernels and host times of decode steps, too")
    parser.add_argument(
        "--steps", action="store_true", help="serve each workload once more and tell of its steps by kind"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the engine")
    parser.add_argument("--checkpoint", choices=list(packed.KINDS), help="quantized files in place of random weights")
    parser.add_argument("--ledger", type=Path, default=ledger.LEDGER / "gpu.jsonl", help="file that gets the figures")
    parser.add_argument("--commit", default=ledger.commit(), help="what is measured, where git cannot tell")
    parser.add_argument("--engine", choices=list(ENGINES), default="quire", help="which engine [quire]")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM beside it, in a process of its own")
    args = parser.parse_args()
    unknown = [m for m in args.models if m not in shapes.MODELS] + [
        w for w in args.workloads if w not in (*SHAPES, READY)
    ]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    args.settings = {name: parsed(value) for name, _, value in (word.partition("=") for word in args.set)}
    if args.checkpoint is not None:
        args.settings |= {"load_format": "auto"}
    return args


def parsed(text: str) -> Any:
    """A setting's value: JSON where it is some, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def machine() -> str:
    """The GPU and the host's cores."""
    return f"{torch.cuda.get_device_name()}, {os.cpu_count()} host cores"


def measure_model(session: Session, model: str, folder: Path) -> None:
    """All cells of one model."""
    kind = shapes.MODELS[model]["model_type"]
    if importlib.util.find_spec(f"quire.models.{kind}") is None:
        print(f"{model}: skipped, quire has no model {kind}", flush=True)
        return
    args = session.args
    if READY in args.workloads and args.engine == "quire":
        measure_ready(session, model, folder)
        # The engine of this process need not compile again what those of the others have.
        os.environ[CACHE] = cache_of(folder)
    chosen = [name for name in SHAPES if name in args.workloads]
    if not chosen and not args.profile:
        return
    started = time.monotonic()
    try:
        engine = ENGINES[args.engine](folder, args.settings)
    except QuireError as error:
        print(f"{model}: skipped, {error}", flush=True)
        return
    print(f"{model}: loaded in {time.monotonic() - started:.1f} s", flush=True)
    session.slowness = CAUTION
    with closing(engine):
        session.experts = count_experts(session, engine, model) if chosen else None
        for name in chosen:
            measure(session, engine, model, name)
        if args.steps and isinstance(engine, Quire):
            show_steps(session, engine, model, chosen)
        if args.profile and isinstance(engine, Quire):
            show_profile(session, engine, model)


def count_experts(session: Session, engine: Engine, model: str) -> float | None:
    """Distinct experts per layer in a step of 64 sequences; None where there are none, or for other engines."""
    if not isinstance(engine, Quire) or not shapes.count(shapes.MODELS[model]).experts:
        return None
    from lib import experts

    engine.stop_at(session.started + session.args.budget_s)
    try:
        found = experts.mean_distinct(engine, [work.prompt[:128] for work in workload("decode-64", WARMUP_SEED)])
    except OutOfTimeError:
        return None
    verdict = "" if found >= experts.LEAST else f": fewer than {experts.LEAST}, the figures do not count"
    print(f"{model}: {found:.1f} distinct experts per layer at batch {experts.BATCH}{verdict}", flush=True)
    return found


def measure(session: Session, engine: Engine, model: str, name: str) -> None:
    """One cell: a warm-up, then repetitions, as many as fit into the time that is left."""
    expected = targets.VLLM_WALL_S[model][name] * session.slowness
    if expected * 1.5 > session.left_s:
        print(
            f"{model} {name}: skipped, needs about {expected:.0f} s a run, {session.left_s:.0f} s are left", flush=True
        )
        return
    engine.stop_at(session.started + session.args.budget_s)
    values: list[float] = []
    try:
        time_works(engine, warmup(name), time.perf_counter)
        for seed in range(min(1, session.args.repeat) if name in ONCE else session.args.repeat):
            if values and targets.VLLM_WALL_S[model][name] * session.slowness * 1.2 > session.left_s:
                break
            timed = time_works(engine, workload(name, seed), time.perf_counter)
            values.append(targets.value_of(name, timed.seconds, timed.prompt_tokens, timed.output_tokens))
            session.slowness = timed.seconds / targets.VLLM_WALL_S[model][name]
    except OutOfTimeError:
        print(f"{model} {name}: stopped, the time is over", flush=True)
    if values:
        report(session, with_bound(session, Figure(model, name, engine.name, values)))


def warmup(name: str) -> list[Work]:
    """The workload with a seed of its own; of those that run once, an eighth of the requests with short outputs."""
    works = workload(name, WARMUP_SEED)
    return [Work(work.prompt, min(work.output_tokens, 32)) for work in works[::8]] if name in ONCE else works


def with_bound(session: Session, figure: Figure) -> Figure:
    """`figure` with what the ceilings allow; as it is where weights are not in 16 bits, which the bounds count with."""
    if session.quantization is not None:
        return figure
    works = workload(figure.workload, 0)
    counts = shapes.count(shapes.MODELS[figure.model])
    narrow = str(session.args.settings.get("kv_cache_dtype", "auto")).startswith("fp8")
    allowed = Replay(counts, session.ceilings, state_bytes=1 if narrow else 2).bound(
        works, SHAPES[figure.workload].head
    )
    prompt, output = sum(len(w.prompt) for w in works), sum(w.output_tokens for w in works)
    bound = targets.value_of(figure.workload, allowed.seconds, prompt, output)
    return Figure(figure.model, figure.workload, figure.engine, figure.values, bound, allowed)


def cache_of(folder: Path) -> str:
    """Where a model's kernels are kept; nothing is there before its first start."""
    return f"{folder}/triton"


def measure_ready(session: Session, model: str, folder: Path) -> None:
    """Start an engine in a new process with empty caches, and again with what the first left in them."""
    for name, runs in ((targets.COLD, 1), (targets.WARM, session.args.repeat)):
        started = [start_once(session, model, folder, name) for _ in range(runs)]
        found = [one for one in started if one is not None]
        if found:
            seconds, phases, engine = zip(*found, strict=True)
            report(session, Figure(model, name, engine[0], list(seconds), phases=medians(phases)))


def medians(phases: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each phase, over all starts."""
    return {phase: statistics.median(one[phase] for one in phases) for phase in phases[0]}


def start_once(session: Session, model: str, folder: Path, name: str) -> tuple[float, dict[str, float], str] | None:
    """Seconds until a new process is ready, those of each phase, and which engine it is; None if it is not ready."""
    if session.left_s < 60:
        print(f"{model} {name}: skipped, {session.left_s:.0f} s are left", flush=True)
        return None
    environ = os.environ | {CACHE: cache_of(folder)}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in session.args.settings.items()]
    words = ["-m", "quire.cli", "bench", "startup", str(folder), "--load-format=dummy", "--log-level=warning"]
    words += [f"--max-model-len={CONTEXT}", *flags]
    started = time.time()
    done = subprocess.run([sys.executable, *words], env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{model} {name}: failed with status {done.returncode}", flush=True)
        return None
    result = json.loads(done.stdout)
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in result["timeline"].items())
    print(f"{model} {name}: {result['ready_at'] - started:.2f} s ({phases})", flush=True)
    return result["ready_at"] - started, result["timeline"], result["engine"]


def show_steps(session: Session, engine: Quire, model: str, names: list[str]) -> None:
    """What the steps of these workloads cost."""
    from lib import steps

    engine.stop_at(session.started + session.args.budget_s)
    for name in names:
        try:
            print(f"{model}: steps of {name}: " + steps.by_kind(engine, workload(name, "steps")), flush=True)
        except OutOfTimeError:
            print(f"{model}: steps of {name}: the time is over", flush=True)


def show_profile(session: Session, engine: Quire, model: str) -> None:
    """Kernels of decode steps at 64 and 1 running and of stretches of workloads; the host's part of steps."""
    from lib import profiling

    engine.stop_at(session.started + session.args.budget_s)
    try:
        for running in (running for running in (1, 64, 256, 1024) if running <= engine.rows):
            times = profiling.host_times(engine, running)
            phases = ", ".join(f"{name} {us:.0f}" for name, us in times.items())
            print(f"{model}: host us a step with {running} running: {phases}", flush=True)
        for running, prompt in ((64, 1024), (1, 128), (256, 640)):
            print(f"{model}: kernels of a step, {running} running on {prompt} tokens", flush=True)
            print(profiling.kernels(engine, running, prompt), flush=True)
        for name, (first, count) in STRETCHES.items():
            print(f"{model}: {count} turns of {name} from turn {first} on", flush=True)
            print(profiling.stretch(engine, workload(name, f"profile-{model}"), first, count), flush=True)
        print(f"{model}: mixed, the host\n" + profiling.classes(engine, warmup("mixed")), flush=True)
    except OutOfTimeError:
        print(f"{model}: profile stopped, the time is over", flush=True)


def beside(session: Session, model: str) -> None:
    """Measure vLLM on the same cells in a process of its own: two engines do not share a device in one."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed", flush=True)
        return
    words = [f"--models={model}", f"--workloads={','.join(w for w in session.args.workloads if w != READY)}"]
    words += [f"--budget-s={session.left_s:.0f}", f"--repeat={session.args.repeat}", f"--ledger={session.args.ledger}"]
    subprocess.run([sys.executable, __file__, "--engine=vllm", f"--commit={session.args.commit}", *words])


if __name__ == "__main__":
    sys.exit(main())
