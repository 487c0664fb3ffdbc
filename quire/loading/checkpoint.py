"""A checkpoint whose headers are read: once, for building the model, for checking it and for loading it.

The runner opens it before it builds the model, since how a matrix is held decides how it will be stored.
"""

from dataclasses import dataclass

import torch

from quire.checkpoint.entries import named
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry, read_headers
from quire.loading.names import language_model
from quire.loading.source import FileSource
from quire.quantization.checkpoint import Quantized, resolve_method


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a checkpoint before a tensor of it is read.

    Attributes:
        facts: of its model.
        entries: its tensors, by the names under which models are built.
        quantized: its quantized matrices; None is one of full precision.
        online: what matrices of full precision become while they load; None leaves them so.
    """

    facts: ModelFacts
    entries: dict[str, TensorEntry]
    quantized: Quantized | None = None
    online: str | None = None


def opened(
    facts: ModelFacts, device: torch.device | None = None, quantization: str | None = None, *, dummy: bool = False
) -> Checkpoint:
    """The checkpoint of `facts`, whose folder nobody looks into if it is a dummy.

    `device` is where quantized matrices are wanted, the CPU unless given; `quantization` is a name that the user gave.
    Raises CheckpointError for damaged headers, and for a quantization that is unknown or another than was asked for.
    """
    headers = {} if dummy else read_headers(facts.path)
    alone = language_model(headers)
    quantized, online = resolve_method(
        facts.quantization, FileSource(alone, device or torch.device("cpu")), quantization
    )
    entries = headers if quantized is None else alone
    return Checkpoint(facts, {} if dummy else named(entries, facts), quantized, online)
