"""Train the small model that ships with the package, from an archive of public-domain English books.

    python tools/train_default_model.py --data books.tar.xz

Tokenises once, then runs the phases of the plan in order on one GPU. A run ends at the wall limit with its state
saved under `--work`; the same command goes on from there. At the end, or at the limit, the weights with the lowest
held-out loss are written to `--out`, the figures and their picture under `--docs`.
"""

import argparse
import time
from pathlib import Path

import torch
from default_model.dataset import Dataset, prepare
from default_model.export import export
from default_model.plan import Plan, load_plan
from default_model.report import measure, write_report
from default_model.trainer import Trainer, best_network, load_progress

_ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the default model.")
    parser.add_argument("--data", type=Path, required=True, help="tar archive of books, one text file each")
    parser.add_argument("--plan", type=Path, default=_ROOT / "tools" / "default_model" / "plan.json")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "default-model", help="tokens and run state")
    parser.add_argument("--out", type=Path, default=_ROOT / "quire" / "assets" / "default_model")
    parser.add_argument("--docs", type=Path, default=_ROOT / "docs")
    parser.add_argument("--wall-seconds", type=float, default=480.0, help="stop and save after this long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--prepare-only", action="store_true", help="clean and tokenise the books, then stop")
    return parser.parse_args()


def train(plan: Plan, data: Dataset, arguments: argparse.Namespace, deadline: float) -> bool:
    """Run the phases in order until the deadline; return whether the shipped phase has weights to export."""
    device = torch.device(arguments.device)
    for phase in plan.phases:
        teacher = best_network(plan.phase(phase.teacher), arguments.work, device) if phase.teacher else None
        trainer = Trainer(phase, teacher, data, arguments.work, device, arguments.compiled)
        if not trainer.finished:
            print(f"{phase.name}: {trainer.network.parameter_count():,} parameters", flush=True)
            trainer.run(deadline)
        if not trainer.finished:
            print(f"{phase.name}: stopped at the wall limit, the same command goes on", flush=True)
            return phase is plan.shipped and trainer.progress.best_step > 0
    return True


def main() -> None:
    arguments = parse_arguments()
    deadline = time.monotonic() + arguments.wall_seconds
    torch.set_float32_matmul_precision("high")
    plan = load_plan(arguments.plan)
    prepare(arguments.data, arguments.work, plan)
    if arguments.prepare_only:
        return
    device = torch.device(arguments.device)
    data = Dataset.load(arguments.work, plan.seed, device)
    if not train(plan, data, arguments, deadline):
        return
    network = best_network(plan.shipped, arguments.work, device)
    progress = {phase.name: load_progress(phase, arguments.work) for phase in plan.phases}
    figures = measure(plan, progress, network, data)
    export(network, data.tokenizer, arguments.out)
    write_report(figures, arguments.docs)
    print(f"held-out loss {figures['validation_loss']:.4f}, {figures['validation_bits_per_byte']:.4f} bits per byte")


if __name__ == "__main__":
    main()
