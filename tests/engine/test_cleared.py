"""The core has memory for weights cleared while torch is imported, as much as they will take."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quire import LLM
from quire.base.errors import CheckpointError
from quire.engine import begin
from tests.engine.toy import make_toy

pytestmark = pytest.mark.torch

PAGES = {"num_gpu_blocks_override": 8, "device": "cpu"}


class Store:
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    @contextmanager
    def clearing(self, size: int) -> Iterator[None]:
        self.heard.append(size)
        yield
        self.heard.append("imported")

    def drop(self) -> None:
        self.heard.append("dropped")


@pytest.mark.parametrize(
    ("settings", "pays", "size"),
    [({}, True, 4096), ({"quantization": "int8"}, True, 2048), ({"quantization": "int4"}, True, 1024), ({}, False, 0)],
)
def test_as_much_is_cleared_as_the_weights_will_take(
    settings: dict[str, str], pays: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_toy(tmp_path / "toy")
    (folder / "model.safetensors").write_bytes((4088).to_bytes(8, "little") + b"{}" + b" " * 4086)
    (folder / "consolidated.safetensors").write_bytes(bytes(4096))  # the same weights once more, which nobody reads
    store = Store()
    monkeypatch.setattr(begin, "ahead", lambda: store)
    monkeypatch.setattr(begin, "pays", lambda device, kernels: pays)
    with LLM(str(folder), **PAGES, **settings):
        assert store.heard == [size, "imported", "dropped"]


def test_a_start_that_fails_gives_back_what_was_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_toy(tmp_path / "toy")
    header = json.dumps({"more": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    store = Store()
    monkeypatch.setattr(begin, "ahead", lambda: store)
    with pytest.raises(CheckpointError, match="more"):
        LLM(str(folder), **PAGES)
    assert store.heard[1:] == ["imported", "dropped"]
