"""What ways to run transformers' modules have in common: `packed.py` and `per_sequence.py` are the two."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.cudnn import rnn
from transformers.utils import ModelOutput

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.pooling import position_offset
from quire.layers.build import Build
from quire.ops.step import StepInputs

PROBE = 4
"""Tokens of the first run."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class UnfitError(CheckpointError):
    """Modules cannot be run in one way; perhaps in another."""


class ForwardPass(ABC):
    """How the inner model computes a step.

    Args:
        facts: of the checkpoint.
        config: as the library wants it.

    Attributes:
        name: of the way, for people.
        attention: name of the function of the library's that computes it.
        whole: whether texts are read as a whole.
        capturable: whether a graph may record `run`; known once it has learnt.
    """

    name: str
    attention: str
    capturable = False

    def __init__(self, facts: ModelFacts, config: Any) -> None:
        self.config = config.get_text_config()
        self.whole = facts.pooling is not None and facts.pooling.whole
        self.offset = position_offset(facts.config)

    @abstractmethod
    def text(self, inner: nn.Module, ids: Tensor) -> ModelOutput:
        """What the inner model makes of one text, (tokens,), that no pages keep."""

    @abstractmethod
    def learn(self, inner: nn.Module, b: Build) -> ModelOutput:
        """Run the model for the first time, without values, and declare what it keeps between steps.

        Returns what it made of the text. Raises UnfitError.
        """

    @abstractmethod
    def run(self, inner: nn.Module, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step: (tokens, hidden)."""

    @abstractmethod
    def check(self, inner: nn.Module, ids: Tensor) -> None:
        """Hold this way against the model's own, once weights are there. Raises CheckpointError."""


def takes(module: nn.Module, name: str) -> bool:
    """Whether a module can be given an argument of that name."""
    return name in inspect.signature(module.forward).parameters


def name_of(module: nn.Module) -> str:
    """As messages call it."""
    return f"transformers' {type(module).__name__}"


def alike(first: Tensor, second: Tensor) -> bool:
    """Equal but for what rounding does; NaN, which damaged weights give, is not its business."""
    return not bool((first.float() - second.float()).abs().max() > 0.05 * first.float().abs().max())


@contextmanager
def refusing(module: nn.Module) -> Iterator[None]:
    """Whatever goes wrong while the library's code is tried is why a module cannot be run so, but want of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except CheckpointError as error:
        raise UnfitError(f"{name_of(module)} cannot be served from pages: {error}") from None
    except Exception as error:
        raise UnfitError(f"{name_of(module)} cannot be served from pages: {error!r}") from error


def convolves(module: nn.Module, device: torch.device) -> bool:
    """Whether there are convolutions of float32 for which torch takes TF32."""
    layers = (layer for layer in module.modules() if isinstance(layer, CONVOLUTIONS))
    return device.type == "cuda" and any(x.dtype is torch.float32 for layer in layers for x in layer.parameters())


@contextmanager
def exact() -> Iterator[None]:
    """Let convolutions of float32 be of float32 on GPUs, too; afterwards cuDNN's settings read as before.

    They are the process's. What may be TF32 is set for all of cuDNN: set for one part alone, torch refuses to tell of
    it, which the library's code may ask for.
    """
    flags = torch.backends.cudnn
    parts: list[Any] = [flags.conv, rnn]  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        allowed = flags.allow_tf32
    except RuntimeError:
        # Somebody has set the parts one by one.
        allowed = False
    else:
        flags.allow_tf32 = False
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        if allowed:
            flags.allow_tf32 = True
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def probe(device: torch.device) -> Tensor:
    """The text of the first run."""
    return torch.arange(PROBE, device=device)
