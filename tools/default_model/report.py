"""The figures of a training run: a JSON file of what was measured and the picture of the loss curves."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from default_model.dataset import Dataset
from default_model.network import Network
from default_model.plan import Phase, Plan
from default_model.trainer import Progress, evaluate


def measure(plan: Plan, progress: dict[str, Progress], network: Network, data: Dataset) -> dict[str, Any]:
    """Measure the shipped weights, rounded to bfloat16 as they ship, on the held-out books and chats."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    books = evaluate(network, data, "books", plan.shipped)
    return {
        "plan": plan.to_dict(),
        "parameters": network.parameter_count(),
        "training_tokens": {"books": len(data.books), "chats": len(data.chats)},
        "validation_tokens": len(data.validation["books"]),
        "validation_bytes": data.validation_bytes,
        "validation_loss": books,
        "validation_bits_per_byte": books / math.log(2) * len(data.validation["books"]) / data.validation_bytes,
        "validation_chat_loss": evaluate(network, data, "chats", plan.shipped),
        "device": torch.cuda.get_device_name() if data.books.is_cuda else "CPU",
        "phases": {name: _phase_figures(plan.phase(name), reached) for name, reached in progress.items()},
    }


def _phase_figures(phase: Phase, reached: Progress) -> dict[str, Any]:
    return {
        "parameters": Network(phase.network).parameter_count(),
        "steps": reached.step,
        "tokens_seen": reached.step * phase.rows * phase.network.context,
        "seconds": round(reached.seconds, 1),
        "best_step": reached.best_step,
        "history": [{key: round(value, 4) for key, value in point.items()} for point in reached.history],
    }


def write_report(figures: dict[str, Any], folder: Path) -> None:
    """Write `default-model.json` and `images/default-model-loss.png` under the documentation folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "default-model.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, folder / "images" / "default-model-loss.png")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw one panel for each phase: the training loss (with dropout) and both held-out losses over tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases = figures["phases"]
    picture, panels = pyplot.subplots(1, len(phases), figsize=(5.5 * len(phases), 4), sharey=True, squeeze=False)
    curves = {"training": "training (books and chats)", "books": "held-out books", "chats": "chats of held-out books"}
    for panel, (name, phase) in zip(panels[0], phases.items(), strict=True):
        points = [point for point in phase["history"] if point["step"] >= 50]
        millions = [point["tokens"] / 1e6 for point in points]
        for key, label in curves.items():
            panel.plot(millions, [point[key] for point in points], label=label, linewidth=1.5)
        panel.set(title=f"{name}, {phase['parameters'] / 1e6:.1f} M parameters", xlabel="million tokens seen")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("loss, nats per token")
    panels[0][-1].legend()
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
