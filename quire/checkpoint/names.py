"""From what the user calls a model to a local folder: the shipped model, a folder, or a name on the Hugging Face hub.

The only file that downloads. It fetches safetensors, configuration and tokenizer files and nothing else; no code of a
repository is ever fetched or run. It comes before anything else is read.
"""

import re
from importlib import resources
from pathlib import Path

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf_folder import unfold

DEFAULT = "default"
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
# The same weights in their makers' own layout, which would double the download.
UNWANTED = ["original/*", "consolidated*", "onnx/*", "*/*.safetensors"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")


def resolve(name: str, revision: str | None = None) -> Path:
    """The local folder of checkpoint `name`: "default", a folder, or `owner/name` on the hub at `revision`.

    Raises CheckpointError, with what to do, where there is no such folder or the hub does not give it.
    """
    if name == DEFAULT:
        return _shipped()
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder.resolve()
    if folder.is_file() and folder.suffix == ".gguf":
        return unfold(folder)
    if folder.exists():
        raise CheckpointError(
            f"model {name!r} is a file; give a .gguf file, or the folder that holds config.json and the weights"
        )
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"model {name!r}: there is no such folder, and it is no hub name (owner/name)")
    return _download(name, revision)


def _shipped() -> Path:
    folder = Path(str(resources.files("quire"))) / "assets" / "default_model"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"the shipped model is not in this installation ({folder}); reinstall quire or name a model"
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    # Imported here: a local folder must not pay for the hub's client, 0.2 s.
    from huggingface_hub import errors, snapshot_download

    where = f"model {name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{where} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: there is no such folder and no such hub repository; for a private one set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no such revision; see its branches and tags") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where} is not in the local cache and the hub cannot be reached; go online or give a local folder"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise CheckpointError(f"{where} could not be downloaded: {error}; give a local folder or try again") from error
