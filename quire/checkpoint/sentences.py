"""The files of sentence-transformers beside a checkpoint: `modules.json`, what its folders say, prompts, lengths.

Knows no tensor. `pooling.py` puts them together with what config.json says.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from quire.base.errors import CheckpointError

T = TypeVar("T", bound=msgspec.Struct)
Method = Literal["cls", "last", "mean"]
MODES: dict[str, Method] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
NAMES: dict[str, Method] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
MODULES = ("Transformer", "Pooling", "Normalize", "Dense")


class Projection(msgspec.Struct, frozen=True):
    """A product that vectors go through behind the model.

    Attributes:
        name: of its module; those of sentence-transformers begin with their folder.
        folder: whose model.safetensors holds it; "" is the model's own.
        inputs, outputs: values of a vector, before and after.
        bias, tanh: whether it has a bias, and goes through tanh.
    """

    name: str
    folder: str
    inputs: int
    outputs: int
    bias: bool = False
    tanh: bool = False


class _Pooling(msgspec.Struct, frozen=True):
    """What `1_Pooling/config.json` says beside the modes."""

    include_prompt: bool = True
    pooling_mode: str | None = None


class PromptPrefixes(msgspec.Struct, frozen=True):
    """config_sentence_transformers.json: what goes before texts.

    Attributes:
        prompts, default_prompt_name: by name, and the name of the one that is always put there.
        query_prefix, document_prefix: before texts that are compared token by token.
        skiplist_words: tokens of such documents that do not count.
        query_length: so many tokens such queries are filled up to, if `do_query_expansion`, with masks that other
            tokens see if `attend_to_expansion_tokens`.
    """

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    skiplist_words: list[str] = []
    query_length: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None
    do_query_expansion: bool = True
    attend_to_expansion_tokens: bool = False


class _Dense(msgspec.Struct, frozen=True):
    """`N_Dense/config.json`."""

    in_features: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    out_features: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    bias: bool = True
    activation_function: str = "Tanh"


class _Lengths(msgspec.Struct, frozen=True):
    """sentence_bert_config.json, or by the name of another kind of model."""

    max_seq_length: Annotated[int, msgspec.Meta(ge=1)] | None = None


def read_sides(folder: Path) -> PromptPrefixes:
    """What goes before texts. Raises CheckpointError."""
    return read_as(folder / "config_sentence_transformers.json", PromptPrefixes)


def read_max_tokens(folder: Path) -> int | None:
    """The longest text, where it is said. Raises CheckpointError."""
    files = sorted(folder.glob("sentence_*_config.json"))
    return read_as(files[0], _Lengths).max_seq_length if files else None


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of sentence-transformers: kind and folder, in order."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        listed = msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in listed]
    except (msgspec.DecodeError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); download it again") from None


def read_method(folder: Path, modules: list[tuple[str, str]]) -> Method | None:
    """How the tokens of a text become one vector, if a module says so. Raises CheckpointError for unknown modules."""
    method: Method | None = None
    for kind, path in modules:
        if kind == "Pooling":
            method = _mode(folder / path / "config.json")
        elif kind not in MODULES:
            raise CheckpointError(
                f"{folder / 'modules.json'}: the module {kind} is not supported; known: {', '.join(MODULES)}"
            )
    return method


def read_dense(folder: Path, path: str) -> Projection:
    """A module of sentence-transformers behind the model. Raises CheckpointError."""
    file = folder / path / "config.json"
    said = read_as(file, _Dense)
    activation = said.activation_function.rpartition(".")[2]
    if activation not in ("Identity", "Tanh"):
        raise CheckpointError(f"{file}: activation_function {activation} is not supported; known: Identity, Tanh")
    return Projection(f"{path}.linear", path, said.in_features, said.out_features, said.bias, activation == "Tanh")


def _mode(file: Path) -> Method:
    values, typed = read_json(file), read_as(file, _Pooling)
    chosen = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    if typed.pooling_mode is not None:
        chosen = [typed.pooling_mode]
    known = {**MODES, **NAMES}
    if len(chosen) != 1 or chosen[0] not in known:
        raise CheckpointError(
            f"{file}: pooling by {' and '.join(chosen) or 'nothing'} is not supported; known: {', '.join(NAMES)}"
        )
    if not typed.include_prompt:
        raise CheckpointError(f"{file}: include_prompt: false is not supported")
    return known[chosen[0]]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}")
    return value


def read_as(file: Path, kind: type[T]) -> T:
    """A JSON object as a struct; its defaults where there is no file. Raises CheckpointError."""
    try:
        return msgspec.convert(read_json(file), kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file}: {error}") from None
