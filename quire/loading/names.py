"""Checkpoints whose tensors have other names because they were saved from a part of the model, or from a larger one.

A base model is saved without the module above it (`h.0...` instead of `transformer.h.0...`), the language model of a
multimodal one beneath another. One prefix is exchanged for all tensors, never a single name. Called by `load.py`, and
by `checkpoint.py` for quantized checkpoints, whose names must be known before the model is built.
"""

from collections.abc import Iterable

from quire.checkpoint.headers import TensorEntry

WITHIN = (("language_model.", ""), ("model.language_model.", "model."), ("model.text_model.", "model."))
"""What names of language models begin with in multimodal checkpoints, and in their own."""
PREFIXES = (
    *WITHIN,
    ("", "model."),
    ("", "transformer."),
    ("", "gpt_neox."),
    ("decoder.", "model.decoder."),
)
"""What names begin with in such checkpoints, and in those that the families know."""
OTHER_PARTS = (
    "vision_tower.",
    "visual.",
    "multi_modal_projector.",
    "vision_model.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
)
"""Beginnings of what a multimodal checkpoint has beside its language model, with or without `model.` before them."""


def fitted(entries: dict[str, TensorEntry], wanted: Iterable[str]) -> dict[str, TensorEntry]:
    """`entries` by the names that the model wants, if exchanging one prefix makes them so; otherwise as they are.

    What belongs to other parts of a multimodal checkpoint is left out where the names of its language model say that
    it is one.
    """
    names = set(wanted)
    best, most = entries, len(names & entries.keys())
    for old, new in PREFIXES:
        made = {_moved(name, names, old, new): entry for name, entry in entries.items()}
        found = len(names & made.keys())
        if found > most:
            best, most = made if not old else _alone(made), found
    return best


def language_model(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """`entries` by the names of a language model alone, where names of layers say that it is a part of a larger model.

    What belongs to the other parts is left out.
    """
    for old, new in WITHIN:
        if any(name.startswith(old) and ".layers." in name for name in entries):
            return _alone({_moved(name, set(), old, new): entry for name, entry in entries.items()})
    return entries


def _moved(name: str, wanted: set[str], old: str, new: str) -> str:
    return name if name in wanted or not name.startswith(old) else new + name.removeprefix(old)


def _alone(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Without what lies beside a language model."""
    return {name: e for name, e in entries.items() if not name.removeprefix("model.").startswith(OTHER_PARTS)}
