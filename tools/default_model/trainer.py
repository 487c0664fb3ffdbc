"""One phase of training: steps, evaluation on held-out books, checkpoints to resume from, the best weights kept.

The wall limit is looked at between steps; a phase that reaches it saves its whole state and says it is not finished,
and the next run goes on from there with the same batches an unbroken run would have drawn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from default_model.dataset import Dataset
from default_model.network import Network
from default_model.optimiser import make_optimisers
from default_model.plan import Phase

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """What a phase has reached; saved with its weights."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = float("inf")
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    def __init__(
        self, phase: Phase, teacher: Network | None, data: Dataset, folder: Path, device: torch.device, compiled: bool
    ) -> None:
        torch.manual_seed(data.seed)
        self.phase, self.data, self.device = phase, data, device
        self.network = Network(phase.network, phase.dropout).to(device)
        self.optimisers = make_optimisers(self.network, phase.learning_rate, phase.weight_decay)
        self.progress = Progress()
        self.best: Weights = {}
        self.path = folder / f"{phase.name}.pt"
        self.teacher = teacher
        self._compiled: Callable[..., Any] = torch.compile if compiled else _unchanged
        if self.path.exists():
            self._resume()

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.phase.steps

    def run(self, deadline: float) -> None:
        """Train until the phase is finished or the clock passes the deadline, then save."""
        loss_of = self._compiled(self._loss)
        began, losses = time.monotonic(), []
        before = self.progress.seconds
        while not self.finished and time.monotonic() < deadline:
            losses.append(self._step(loss_of))
            step = self.progress.step
            if step in (1, 10, 50) or step % self.phase.evaluate_every == 0 or self.finished:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                self.progress.seconds = before + time.monotonic() - began
                self._evaluate(mean)
        self.progress.seconds = before + time.monotonic() - began
        self._save()

    def _step(self, loss_of: Callable[..., Tensor]) -> Tensor:
        phase, step = self.phase, self.progress.step
        inputs, targets = self.data.batch(step, phase.rows, phase.network.context, phase.chat_share)
        self.network.train()
        loss, hard = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = phase.learning_rate_at(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        if step % 20 == 19:
            hard.item()  # waits for the device, so that the wall limit sees a true clock
        return hard.detach()

    def _loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is minimised and the plain cross entropy, which is what curves show."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(inputs).flatten(0, 1)
            hard = F.cross_entropy(logits.float(), targets.flatten())
            if self.teacher is None:
                return hard, hard
            with torch.no_grad():
                wanted = self.teacher(inputs).flatten(0, 1).float().softmax(-1)
            soft = -(wanted * logits.float().log_softmax(-1)).sum(-1).mean()
        weight = self.phase.teacher_weight
        return (1 - weight) * hard + weight * soft, hard

    def _evaluate(self, training_loss: float) -> None:
        books = evaluate(self.network, self.data, "books", self.phase)
        chats = evaluate(self.network, self.data, "chats", self.phase)
        progress = self.progress
        if books < progress.best_loss:
            progress.best_loss, progress.best_step = books, progress.step
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        tokens = progress.step * self.phase.rows * self.phase.network.context
        progress.history.append(
            {"step": progress.step, "tokens": tokens, "training": training_loss, "books": books, "chats": chats}
        )
        speed = tokens / max(progress.seconds, 1)
        print(
            f"{self.phase.name} step {progress.step}/{self.phase.steps} training {training_loss:.4f} "
            f"books {books:.4f} chats {chats:.4f} {progress.seconds:.0f} s {speed:,.0f} tok/s",
            flush=True,
        )

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "progress": vars(self.progress),
            "best": self.best,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _resume(self) -> None:
        state = torch.load(self.path, map_location=self.device)
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress, self.best = Progress(**state["progress"]), state["best"]


@torch.no_grad()
def evaluate(network: Network, data: Dataset, split: str, phase: Phase) -> float:
    """Return the mean loss in nats per token over the held-out stream."""
    network.eval()
    device = data.books.device
    total, count = torch.zeros((), device=device, dtype=torch.float64), 0
    for inputs, targets in data.validation_windows(split, phase.network.context, phase.rows):
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(inputs)
        total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        count += int((targets >= 0).sum())
    return total.item() / count


def best_network(phase: Phase, folder: Path, device: torch.device) -> Network:
    """Return the phase's network with the weights that had the lowest held-out loss, fixed and ready to predict."""
    state = torch.load(folder / f"{phase.name}.pt", map_location=device)
    network = Network(phase.network).to(device)
    network.load_state_dict(state["best"])
    return network.eval().requires_grad_(False)


def load_progress(phase: Phase, folder: Path) -> Progress:
    path = folder / f"{phase.name}.pt"
    return Progress(**torch.load(path, map_location="cpu")["progress"]) if path.exists() else Progress()


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
