"""The tensors of a checkpoint under the names by which models are built.

A bare model (`BertModel`) leaves out the name under which models with a head hold it (`bert.`), and checkpoints hold
heads that nobody asks for.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry, read_header, read_headers
from quire.checkpoint.pooling import PoolerFacts

BASES = {
    "bert": "bert",
    "camembert": "roberta",
    "gte": "gte",
    "modernbert": "model",
    "nomic_bert": "nomic_bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}
"""Under which name each encoder's classes hold the bare model. The names of decoders are the loader's business."""
OLD_BASES = {"gte": "new"}
"""The same in the code that came with the first checkpoints of a family."""
OLD_NORMS = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
"""Endings of BERT's first checkpoints."""
GENERATING = ("cls.", "decoder.", "lm_head.")
"""How names of heads begin that say words."""


def read_entries(facts: ModelFacts) -> dict[str, TensorEntry]:
    """Every tensor that a model of `facts` may use, by name. Raises CheckpointError as `read_headers` does."""
    return named(read_headers(facts.path), facts)


def named(entries: dict[str, TensorEntry], facts: ModelFacts) -> dict[str, TensorEntry]:
    """Those of `entries`, a checkpoint's as its files have them, that a model of `facts` may use, by name.

    Headers of modules behind the model are read. Raises CheckpointError as `read_headers` does.
    """
    pooling = facts.pooling
    if pooling is None:
        return entries
    behind = _behind(facts.path, pooling)
    base = f"{BASES.get(facts.model_type, 'model')}."
    entries = _by_new_names(entries.values(), base, f"{OLD_BASES.get(facts.model_type, '')}.")
    if facts.model_type in BASES and not any(name.startswith(base) for name in entries):
        entries = _below(base, entries.values())
    speaks = pooling.tokens and not facts.config.get("tie_word_embeddings")
    unused: tuple[str, ...] = (*(() if speaks else GENERATING), f"{base}embeddings.position_ids")
    if pooling.head != "sequence":
        unused += (f"{base}pooler.",)
    if pooling.head == "none":
        unused += ("head.", "classifier.")
    return {name: entry for name, entry in entries.items() if not name.startswith(unused)} | behind


def _by_new_names(entries: Iterable[TensorEntry], base: str, old: str) -> dict[str, TensorEntry]:
    """Entries by the names that classes have today."""
    found: dict[str, TensorEntry] = {}
    for entry in entries:
        name = base + entry.name.removeprefix(old) if entry.name.startswith(old) else entry.name
        for ending, new in OLD_NORMS.items():
            name = name.removesuffix(ending) + new if name.endswith(ending) else name
        found[name] = msgspec.structs.replace(entry, name=name)
    return found


def _behind(path: str, pooling: PoolerFacts) -> dict[str, TensorEntry]:
    """The tensors of modules behind the model, each below the name of its folder."""
    found: dict[str, TensorEntry] = {}
    for folder in [projection.folder for projection in pooling.projections if projection.folder]:
        found |= _below(f"{folder}.", read_header(Path(path) / folder / "model.safetensors"))
    return found


def _below(base: str, entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    """Entries under longer names."""
    moved = [msgspec.structs.replace(entry, name=f"{base}{entry.name}") for entry in entries]
    return {entry.name: entry for entry in moved}
