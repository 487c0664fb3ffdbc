"""How texts are read that are compared token by token (ColBERT): what goes before queries and documents, the masks that
queries are filled up with, and which tokens of documents do not count.

PyLate says it in config_sentence_transformers.json, ColBERT itself in artifact.metadata. Knows no tensor; `pooling.py`
asks for it.
"""

import string
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quire.base.errors import CheckpointError
from quire.checkpoint.sentences import read_as, read_json, read_sides

Length = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class _Artifact(msgspec.Struct, frozen=True):
    """artifact.metadata."""

    query_token_id: str | None = None
    doc_token_id: str | None = None
    query_maxlen: Length | None = None
    attend_to_mask_tokens: bool = False
    mask_punctuation: bool = False


class _Special(msgspec.Struct, frozen=True):
    """The token for masks in tokenizer_config.json or special_tokens_map.json."""

    mask_token: str | dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """As the vocabulary has it; "" where there is none."""
        found = self.mask_token.get("content") if isinstance(self.mask_token, dict) else self.mask_token
        return found if isinstance(found, str) else ""


class LateInteraction(msgspec.Struct, frozen=True, kw_only=True):
    """How such texts are read.

    Attributes:
        prefixes: texts before queries and before documents.
        markers: tokens behind their first one; None puts none there.
        skipped: tokens of documents that do not count.
        query_length: queries are filled up to so many tokens with `mask`; None leaves them.
        mask: a token's id.
        seen: whether what queries are filled up with is seen by other tokens.
    """

    prefixes: tuple[str, str] = ("", "")
    markers: tuple[int | None, int | None] = (None, None)
    skipped: list[int] = []
    query_length: int | None = None
    mask: int = 0
    seen: bool = False

    def read(self, ids: list[int], query: bool, kept: int | None, room: int) -> list[int]:
        """The tokens of a text as the model reads them.

        Args:
            ids: as the tokenizer makes them.
            kept: so many remain, and the last one of all; None keeps all.
            room: of what the engine reads.
        """
        marker = self.markers[0 if query else 1]
        if marker is not None:
            ids = [*ids[:1], marker, *ids[1:]]
        if kept is not None and len(ids) > kept:
            ids = [*ids[: kept - 1], ids[-1]]
        wanted = min(self.query_length or 0, kept or room) if query else 0
        return ids + [self.mask] * (wanted - len(ids))

    def seen_of(self, ids: list[int]) -> int:
        """So many tokens of a text are seen by others: all but the masks at its end."""
        count = len(ids)
        while not self.seen and self.query_length is not None and count > 1 and ids[count - 1] == self.mask:
            count -= 1
        return count


def read_late(folder: Path, masks: bool) -> LateInteraction:
    """How texts are read that are compared token by token.

    Args:
        masks: whether the model can read masks: one that looks both ways.

    Raises CheckpointError.
    """
    said, own = read_sides(folder), read_as(folder / "artifact.metadata", _Artifact)
    words = [*said.skiplist_words, *(string.punctuation if own.mask_punctuation else "")]
    length = own.query_maxlen or (said.query_length if said.do_query_expansion else None)
    known = vocabulary(folder) if words or length or own.query_token_id or own.doc_token_id else {}
    mask = known.get(_mask(folder)) if masks else None
    if masks and length is not None and mask is None:
        raise CheckpointError(
            f"{folder}: queries are filled up to {length} tokens with masks, but the tokenizer names no mask_token"
        )
    return LateInteraction(
        prefixes=(said.query_prefix, said.document_prefix),
        markers=(_marker(folder, known, own.query_token_id), _marker(folder, known, own.doc_token_id)),
        skipped=sorted({known[word] for word in words if word in known}),
        query_length=None if mask is None else length,
        mask=mask or 0,
        seen=own.attend_to_mask_tokens or said.attend_to_expansion_tokens,
    )


def vocabulary(folder: Path) -> dict[str, int]:
    """The ids of tokens by their text, where tokenizer.json lists them so."""
    told = read_json(folder / "tokenizer.json")
    model, added = told.get("model"), told.get("added_tokens")
    listed = model.get("vocab") if isinstance(model, dict) else None
    found = listed if isinstance(listed, dict) else {}
    more = {each.get("content"): each.get("id") for each in added or () if isinstance(each, dict)}
    return {name: number for name, number in {**found, **more}.items() if type(number) is int}


def _marker(folder: Path, known: dict[str, int], name: str | None) -> int | None:
    if name is not None and name not in known:
        raise CheckpointError(f"{folder / 'artifact.metadata'}: there is no token {name!r} in tokenizer.json")
    return None if name is None else known[name]


def _mask(folder: Path) -> str:
    files = ("tokenizer_config.json", "special_tokens_map.json")
    return next((text for file in files if (text := read_as(folder / file, _Special).text)), "")
