"""Tiny checkpoints in a quantized format, each beside one of full precision that holds the same values.

A test says by `Writer` what becomes of each matrix: the tensors as the format publishes them, and their values.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire.loading.recipe import weights_of
from quire.parallel.mesh import Mesh
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.ops.triton import INTERPRETER

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
PROVIDERS: list[list[str]] = [[]]
"""Kernels whose own arrangements of weights are looked at; Triton's run here where it is interpreted."""
if INTERPRETER:
    PROVIDERS.append(["triton"])
PROMPTS = [[5, 9, 11, 3, 90, 17, 40, 41, 8, 7, 23], [60, 61, 62], [90, 4, 33, 21, 3, 3, 7]]

Writer = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor] | None]
"""Takes the name of a module and its weight; gives tensors by their endings and the values that these stand for, or
None for a matrix that stays as it is."""
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Makes of transformers' tensors those of a published checkpoint."""


def taken(plain: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whose files of weights are removed: others will take their place."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(plain.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (plain / "model.safetensors.index.json").unlink(missing_ok=True)
    return tensors


def write(
    folder: Path, config: dict[str, Any], writer: Writer, family: str = "llama", *, change: Change = dict, **sizes: Any
) -> tuple[Path, Path, dict[str, Tensor]]:
    """A quantized checkpoint, the same in full precision, and the values of its matrices by module."""
    plain = make(family, folder / "plain", **{**SIZES, **sizes})
    tensors = change(taken(plain))
    quantized, values = folder / "quantized", {}
    quantized.mkdir()
    stored: dict[str, Tensor] = {}
    for name, tensor in list(tensors.items()):
        module = name.removesuffix(".weight")
        made = writer(module, tensor) if tensor.dim() == 2 and name.endswith(".weight") else None
        if made is None:
            stored[name] = tensor
            continue
        stored |= {f"{module}.{ending}": value.contiguous() for ending, value in made[0].items()}
        tensors[name] = values[module] = made[1].contiguous()
    save_file(stored, quantized / "model.safetensors")
    save_file(tensors, plain / "model.safetensors")
    for file in plain.glob("*.json"):
        (quantized / file.name).write_text(file.read_text())
    if config:
        told = json.loads((plain / "config.json").read_text())
        (quantized / "config.json").write_text(json.dumps({**told, "quantization_config": config}))
    return quantized, plain, values


def inner(module: str) -> bool:
    """Whether a module is one of the products within layers."""
    return module.endswith("_proj")


def check(quantized: Path, plain: Path, values: dict[str, Tensor]) -> Driver:
    """The quantized checkpoint has these values to the bit, on one rank and on two, and writes the same tokens.

    Returns what ran it.
    """
    for providers, mesh in itertools.product(PROVIDERS, (Mesh(), Mesh(0, 2), Mesh(1, 2))):
        ran = Driver(quantized, 4, providers, mesh)
        assert compare(ran, values), "something is quantized"
    files = {file.resolve() for file in quantized.iterdir()}
    assert files.isdisjoint(Path(file.path) for file in psutil.Process().open_files())
    ran, want = Driver(quantized, 4), Driver(plain, 4)
    for ours, theirs in zip(ran.generate(PROMPTS, 6), want.generate(PROMPTS, 6), strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.all_logits() - theirs.all_logits()).abs().max() < 1e-4
    return ran


def compare(ran: Driver, values: dict[str, Tensor]) -> int:
    """Weights that are not stored in full precision, all of whose parts have their values to the bit."""
    stored = 0
    for weight in weights_of(ran.model):
        if not weight.stored:
            continue
        stored += 1
        row = 0
        found = weight.stored.rows(weight.data, torch.arange(weight.stored.outputs))
        for part in weight.recipe.parts:
            rows, columns = part.spans(ran.mesh.rank, ran.mesh.size)
            module = part.name.removesuffix(".weight")
            if module in values:
                want = values[module].float()
                want = want[rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
                assert torch.equal(found[row : row + rows.length], want), part.name
            row += rows.length + rows.zeros
    return stored


def stored_bytes(driver: Driver) -> int:
    """Of the weights that are not in full precision."""
    return sum(weight.nbytes for weight in driver.model.parameters() if weight.stored)
