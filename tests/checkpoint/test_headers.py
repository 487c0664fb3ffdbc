"""Headers of safetensors files: every claim is held against the file before anyone allocates by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import INDEX, read_headers
from tests.checkpoint.files import entry, write_tensors

pytestmark = pytest.mark.plain


def shards(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    write_tensors(
        folder / "a.safetensors", {"x": entry("F32", [2, 3], 0, 24), "__metadata__": {"format": "pt"}}, bytes(24)
    )
    write_tensors(folder / "b.safetensors", {"y": entry("BF16", [4], 0, 8), "z": entry("I8", [0], 8, 8)}, bytes(8))
    weight_map = weight_map or {"x": "a.safetensors", "y": "b.safetensors", "z": "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    headers = read_headers(shards(tmp_path))
    assert sorted(headers) == ["x", "y", "z"]
    assert headers["x"].shape == (2, 3) and headers["x"].nbytes == 24
    assert headers["y"].file == str(tmp_path / "b.safetensors")
    raw = (tmp_path / "b.safetensors").read_bytes()
    assert headers["y"].offset == len(raw) - 8, "offsets count from the start of the file"


def test_without_an_index_the_single_file_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"x": entry("U8", [3], 0, 3)}, b"abc")
    write_tensors(tmp_path / "other.safetensors", {"x": entry("U8", [3], 0, 3)}, b"abc")
    assert list(read_headers(tmp_path)) == ["x"]


def test_without_an_index_all_other_files_are_read(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / INDEX).unlink()
    assert sorted(read_headers(tmp_path)) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("entries", "size", "says"),
    [
        ({"x": entry("F32", [2, 3], 0, 24)}, 20, "truncated: tensor x"),
        ({"x": entry("F32", [2, 3], 0, 24)}, 25, "after its last tensor"),
        ({"x": entry("F32", [1 << 40], 0, 1 << 42)}, 24, "truncated: tensor x"),
        ({"x": entry("F32", [2, 3], 0, 20)}, 20, "does not fill"),
        ({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, 12, "tensor y overlaps"),
        (
            {"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 12, 20)},
            20,
            "tensor y overlaps another or leaves a gap",
        ),
        ({"x": entry("F13", [2], 0, 8)}, 8, "unknown dtype 'F13'"),
        ({"x": entry("F32", [-2], 0, -8)}, 8, "no natural number"),
        ({"x": entry("F32", [True], 0, 4)}, 4, "no natural number"),
        ({"x": {"dtype": "F32", "shape": [2]}}, 8, "lacks dtype, shape or data_offsets"),
        ({"x": 5}, 8, "lacks dtype, shape or data_offsets"),
        ([], 0, "must be a JSON object"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(entries: Any, size: int, says: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", entries, bytes(size))
    with pytest.raises(CheckpointError, match=says) as caught:
        read_headers(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, (1 << 50).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"{{}}"]
)
def test_a_file_without_a_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors.*download it again"):
        read_headers(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard .*b\.safetensors is missing"):
        read_headers(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    shards(tmp_path, {"x": "a.safetensors", "w": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"promises tensor w in b\.safetensors"):
        read_headers(tmp_path)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    write_tensors(tmp_path / "b.safetensors", {"x": entry("U8", [1], 0, 1)}, b"a")
    with pytest.raises(CheckpointError, match="tensor x is in both"):
        read_headers(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors"])
def test_an_index_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a file beside it"):
        read_headers(shards(tmp_path, {"x": name}))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"x": 3}}'])
def test_a_damaged_index_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        read_headers(tmp_path)


def test_a_folder_without_safetensors_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="convert the weights to safetensors"):
        read_headers(tmp_path)
