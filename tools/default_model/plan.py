"""The plan of a training run: what is held out, the sizes of the networks, the schedule of each phase.

A plan is a JSON file (`plan.json` beside this module is the one the shipped model was made with), read into frozen
dataclasses, so that a misspelt field is an error before any device time is spent.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from default_model.network import NetworkConfig


@dataclass(frozen=True)
class Phase:
    """One network trained over the books; `teacher` names an earlier phase whose predictions it also learns from."""

    name: str
    network: NetworkConfig
    steps: int
    rows: int
    learning_rate: float
    weight_decay: float
    dropout: float
    warmup_steps: int = 100
    flat_share: float = 0.3
    final_share: float = 0.01
    chat_share: float = 0.3
    teacher: str | None = None
    teacher_weight: float = 0.0
    evaluate_every: int = 100

    def learning_rate_at(self, step: int) -> float:
        """Warm up, stay at the peak for a share of the steps, then fall linearly: the fall is what lowers the loss."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        flat_end = max(self.warmup_steps, int(self.flat_share * self.steps))
        if step < flat_end:
            return self.learning_rate
        remaining = (self.steps - step) / max(1, self.steps - flat_end)
        return self.learning_rate * max(self.final_share, remaining)


@dataclass(frozen=True)
class Plan:
    seed: int
    vocab_size: int
    skipped_books: tuple[str, ...]
    held_out_books: tuple[str, ...]
    phases: tuple[Phase, ...]

    @property
    def shipped(self) -> Phase:
        return self.phases[-1]

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_plan(path: Path) -> Plan:
    fields = json.loads(path.read_text())
    fields["skipped_books"] = tuple(fields["skipped_books"])
    fields["held_out_books"] = tuple(fields["held_out_books"])
    fields["phases"] = tuple(_phase(phase, fields["vocab_size"]) for phase in fields["phases"])
    return Plan(**fields)


def _phase(fields: dict[str, Any], vocab_size: int) -> Phase:
    return Phase(**{**fields, "network": NetworkConfig(vocab_size=vocab_size, **fields["network"])})
