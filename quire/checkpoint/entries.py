"""The tensors of a checkpoint under the names by which models are built.

A bare model (`BertModel`) leaves out the name under which models with a head hold it (`bert.`), and checkpoints hold
heads that nobody asks for. The loader reads headers through here.
"""

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry, read_headers

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
GENERATING = ("cls.", "decoder.", "lm_head.")
"""How names of heads begin that say words."""


def read_entries(facts: ModelFacts) -> dict[str, TensorEntry]:
    """Every tensor that a model of `facts` may use, by name. Raises CheckpointError as `read_headers` does."""
    entries = read_headers(facts.path)
    pooling = facts.pooling
    if pooling is None:
        return entries
    base = f"{BASES.get(facts.model_type, 'model')}."
    if facts.model_type in BASES and not any(name.startswith(base) for name in entries):
        entries = {
            f"{base}{name}": msgspec.structs.replace(entry, name=f"{base}{name}") for name, entry in entries.items()
        }
    unused: tuple[str, ...] = (*GENERATING, f"{base}embeddings.position_ids")
    if pooling.head != "sequence":
        unused += (f"{base}pooler.",)
    if pooling.head == "none":
        unused += ("head.",)
    return {name: entry for name, entry in entries.items() if not name.startswith(unused)}
