"""GGUF files whose tensors are spread over several, as llama.cpp's tools and the package `gguf` split them."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import parts_of, read_gguf
from quire.checkpoint.gguf_folder import unfold
from quire.checkpoint.names import resolve
from tests.quantization.checkpoints import check
from tests.quantization.test_gguf import write

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.torch


def files_of(folder: Path) -> tuple[list[Path], Path, dict[str, Tensor]]:
    _, plain, values = write(folder, "Q4_K", split=4)
    return sorted(folder.glob("model-*.gguf")), plain, values


def test_the_first_file_is_named_and_all_are_read(tmp_path: Path) -> None:
    files, plain, values = files_of(tmp_path)
    assert len(files) == 3 and parts_of(files[0], 3) == files
    # Caches of the hub hold files by other names, behind links.
    blobs, names = tmp_path / "blobs", tmp_path / "names"
    blobs.mkdir()
    names.mkdir()
    for number, file in enumerate(files):
        (names / file.name).symlink_to(file.rename(blobs / f"{number}"))
    check(unfold(names / files[0].name, tmp_path / "cache"), plain, values)


def test_revisions_that_share_the_first_file_are_two_folders(tmp_path: Path) -> None:
    """As in the hub's cache, where only files that changed are another revision's own."""
    files, _, _ = files_of(tmp_path)
    found = []
    for name in ("old", "new"):
        folder = tmp_path / name
        folder.mkdir()
        own = folder / "blob"
        own.write_bytes(files[1].read_bytes())
        for file in files:
            (folder / file.name).symlink_to(own if file is files[1] else file)
        unfolded = unfold(folder / files[0].name, tmp_path / "cache")
        assert (unfolded / files[1].name).resolve() == own
        found.append(unfolded)
    assert found[0] != found[1] and unfold(tmp_path / "old" / files[0].name, tmp_path / "cache") == found[0]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files, _, _ = files_of(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003.gguf is part 2 of 3; name the first, whose name has"
    ):
        resolve(str(files[1]))
    whole = files[2].read_bytes()
    files[2].unlink()
    with pytest.raises(
        CheckpointError, match=r"is the first of 3 files; .*model-00003-of-00003.gguf is missing; put it"
    ):
        resolve(str(files[0]))
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003.gguf is not part 3 of 3"):
        read_gguf(files[0])
    files[2].write_bytes(whole)
    assert len(read_gguf(files[0]).tensors) == 12


@pytest.mark.parametrize(
    ("add", "key", "value"),
    [
        *(("add_string", "count", "2"), ("add_float32", "count", 2.0), ("add_uint64", "count", 1 << 40)),
        *(("add_int32", "count", -1), ("add_string", "no", "1"), ("add_uint32", "no", 1)),
    ],
)
def test_numbers_of_files_that_cannot_be_are_refused(add: str, key: str, value: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    getattr(writer, add)(f"split.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"model.gguf is damaged: split.no is .* of split.count .*; download"):
        read_gguf(tmp_path / "model.gguf")
