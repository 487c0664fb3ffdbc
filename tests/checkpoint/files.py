"""Safetensors files written byte by byte, so that tests can write wrong ones."""

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "max_position_embeddings": 64,
    "dtype": "float32",
}


def write_config(folder: Path, **changes: Any) -> Path:
    """A folder with a small config.json; a change to None removes the field."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tensors(file: Path, entries: dict[str, Any], data: bytes) -> Path:
    """A safetensors file with this header and this data, whether they fit or not."""
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor's entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
