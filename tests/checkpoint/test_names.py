"""From what the user calls a model to a folder. The hub is faked: nothing here goes online."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from quire.base.errors import CheckpointError
from quire.checkpoint import names
from quire.checkpoint.names import resolve

pytestmark = pytest.mark.plain


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert resolve("here") == tmp_path / "here"


def test_the_shipped_model_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(CheckpointError, match="reinstall quire"):
        resolve("default")
    folder = tmp_path / "quire" / "assets" / "default_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve("default") == folder


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "~/nothing-there", ""])
def test_what_can_be_no_hub_name_is_refused_without_asking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError):
        resolve(name)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(str(tmp_path / "model.bin"))


def test_a_hub_name_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/model", "v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/model", "v1")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.LocalEntryNotFoundError("offline"), "hub cannot be reached"),
        (OSError("disk full"), "disk full"),
        (errors.HFValidationError("bad"), "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=says) as caught:
        resolve("owner/model", "v1")
    assert "'owner/model' at revision 'v1'" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (errors.GatedRepoError, "accept its terms"),
        (errors.RepositoryNotFoundError, "no such hub repository"),
        (errors.RevisionNotFoundError, "no such revision"),
    ],
)
def test_what_the_hub_does_not_have_is_named(kind: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=says):
        resolve("owner/model")
