"""Checkpoints that do not fit their config are refused before a parameter has any memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire import LLM
from quire.base.errors import CheckpointError
from quire.layers.build import Build
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint."""
    made = make("llama", tmp_path)
    make_byte_bpe(made)
    return made


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where parameters have been given memory."""
    found: list[str] = []
    taken = Build._taken

    def noted(self: Build, *given: object) -> torch.Tensor:
        found.append(self.device.type)
        return taken(self, *given)

    monkeypatch.setattr(Build, "_taken", noted)
    return found


def rewrite(folder: Path, name: str, value: torch.Tensor | None) -> str:
    """Put `value` in the place of tensor `name`, or take it away; the file it is in."""
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    file = folder / listed["weight_map"][name]
    tensors = load_file(file)
    del tensors[name]
    if value is None:
        del listed["weight_map"][name]
        index.write_text(json.dumps(listed))
    else:
        tensors[name] = value
    save_file(tensors, file)
    return file.name


def test_a_missing_tensor(folder: Path, devices: list[str]) -> None:
    rewrite(folder, "model.layers.1.mlp.down_proj.weight", None)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.1\.mlp\.down_proj\.weight"):
        LLM(str(folder), num_gpu_blocks_override=10)
    assert set(devices) == {"meta"}


def test_a_tensor_of_another_shape(folder: Path, devices: list[str]) -> None:
    file = rewrite(folder, "model.layers.1.mlp.down_proj.weight", torch.zeros(3, 5))
    with pytest.raises(CheckpointError, match=rf"{file}: tensor model\.layers\.1\.mlp\.down_proj\.weight has shape"):
        LLM(str(folder), num_gpu_blocks_override=10)
    assert set(devices) == {"meta"}


def test_one_that_fits_takes_memory_after_that(folder: Path, devices: list[str]) -> None:
    LLM(str(folder), num_gpu_blocks_override=10).close()
    assert devices[0] == "meta" and devices[-1] == "cpu" and devices == sorted(devices, reverse=True)
