"""What is wrong with a checkpoint is told before a process is started, with the file and the tensor or field."""

import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from quire.base.errors import QuireError
from quire.config.sources import load
from quire.server.run import serve
from tests.engine.toy import make_toy

pytestmark = pytest.mark.plain

Damage = Callable[[Path], object]


def weights(entries: dict[str, object], data: int) -> Damage:
    """One file with this header, and so many bytes after it."""
    text = json.dumps(entries).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def tensor(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> dict[str, object]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def field(name: str, value: object) -> Damage:
    """config.json with another value."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))

    return change


def shards(folder: Path) -> None:
    """An index that names a file which is not there."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (weights({"w.a": tensor(0, 16)}, 12), r"model\.safetensors is truncated: tensor w\.a"),
    "overlapping": (weights({"w.a": tensor(0, 16), "w.b": tensor(8, 24)}, 24), r"tensor w\.b overlaps"),
    "mistyped": (weights({"w.a": tensor(0, 16, "F33")}, 16), r"tensor w\.a has unknown dtype 'F33'"),
    "too small for its shape": (weights({"w.a": tensor(0, 8)}, 8), r"tensor w\.a, F32 of shape \(4,\)"),
    "header beyond the file": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"), "truncated or no"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors"),
    "missing shard": (shards, r"model-00001-of-00002\.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json"),
    "config without a type": (field("model_type", None), "model_type"),
    "vocabulary of text": (field("vocab_size", "many"), "vocab_size"),
    "context of a list": (field("max_position_embeddings", [1]), "max_position_embeddings"),
    "generation config": (lambda f: (f / "generation_config.json").write_text("]"), r"generation_config\.json"),
}


def refused(folder: Path, says: str, **flags: str) -> None:
    """`quire serve` says so, and starts nothing."""
    config, _ = load({"model": str(folder), "port": "0", **flags}, None)
    with (
        mock.patch("quire.server.run.Supervisor", side_effect=AssertionError("something was started")),
        pytest.raises(QuireError, match=says),
    ):
        serve(config)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    harm, says = DAMAGES[damage]
    harm(make_toy(tmp_path / "model"))
    refused(tmp_path / "model", says)


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_port_in_use(count: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(make_toy(tmp_path / "model"), f"port {port}", port=port, api_server_count=count)


def test_too_few_open_files_to_hold_clients(tmp_path: Path) -> None:
    with mock.patch("resource.getrlimit", return_value=(64, 64)):
        refused(make_toy(tmp_path / "model"), "only 64 files may be open .* LimitNOFILE")
