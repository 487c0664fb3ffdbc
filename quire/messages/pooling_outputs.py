"""What users of the Python API get back of texts that were pooled. Names and fields are vLLM's."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from quire.base.errors import RequestError
from quire.checkpoint.pooling import PoolerFacts
from quire.messages.outputs import RequestOutput
from quire.messages.pooling import TOKEN_TASKS, PoolingTask


class EmbeddingOutput(msgspec.Struct):
    """A vector."""

    embedding: list[float]


class ClassificationOutput(msgspec.Struct):
    """The probability of each label, in the order of the checkpoint's `id2label`."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.probs)


class ScoringOutput(msgspec.Struct):
    """How well two texts go together; larger is better."""

    score: float


class PoolingOutput(msgspec.Struct):
    """A vector, or one for each token."""

    data: list[float] | list[list[float]]


class _Pooled(msgspec.Struct, kw_only=True):
    request_id: str
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class PoolingRequestOutput(_Pooled, kw_only=True):
    """What `LLM.encode` gives for a text."""

    outputs: PoolingOutput


class EmbeddingRequestOutput(_Pooled, kw_only=True):
    """What `LLM.embed` gives for a text."""

    outputs: EmbeddingOutput


class ClassificationRequestOutput(_Pooled, kw_only=True):
    """What `LLM.classify` gives for a text."""

    outputs: ClassificationOutput


class ScoringRequestOutput(_Pooled, kw_only=True):
    """What `LLM.score` gives for a pair of texts."""

    outputs: ScoringOutput


class Side(NamedTuple):
    """A text that is compared with others.

    Attributes:
        query: whether it is read as a query, where queries are read otherwise than documents.
    """

    text: str
    query: bool = False


def values_of(output: RequestOutput) -> "array[float]":
    """The values of a pooled text, float32, one vector after another."""
    return array("f", output.vector or b"")


def data_of(output: RequestOutput, task: PoolingTask | None) -> list[float] | list[list[float]]:
    """The vector of a pooled text, or those of its tokens."""
    values = values_of(output).tolist()
    if task not in TOKEN_TASKS:
        return values
    width = len(values) // len(output.prompt_token_ids)
    return [values[start : start + width] for start in range(0, len(values), width)]


def similarity(first: Sequence[float], second: Sequence[float]) -> float:
    """The cosine of two vectors of any length; 0 where one of them is 0."""
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    size = (sum(a * a for a in first) * sum(b * b for b in second)) ** 0.5
    return dot / size if size else 0.0


def late_similarity(query: Sequence[float], document: Sequence[float], counts: Sequence[bool]) -> float:
    """How well two texts go together, whose tokens have a vector each: for each token of the query what the document's
    best one gives, added up (Khattab and Zaharia, "ColBERT", 2020).

    Args:
        counts: whether it does, for each token of the document.
    """
    second = np.asarray(document, dtype=np.float32).reshape(len(counts), -1)
    first = np.asarray(query, dtype=np.float32).reshape(-1, second.shape[1])
    return float((first @ second[np.asarray(counts)].T).max(axis=1).sum())


def compare(pooler: PoolerFacts, query: RequestOutput, document: RequestOutput) -> float:
    """How well two texts go together, by what a model that reads them one by one made of them."""
    first, second = values_of(query), values_of(document)
    if pooler.late is None:
        return similarity(first, second)
    tokens, skipped = document.prompt_token_ids, frozenset(pooler.late.skipped)
    # A document of skipped tokens alone counts as it is.
    everything = skipped.issuperset(tokens)
    return late_similarity(first, second, [everything or token not in skipped for token in tokens])


def sided(pooler: PoolerFacts, pairs: Sequence[tuple[str, str]]) -> list[tuple[Side, Side]]:
    """Pairs of a query and a document as such a model reads them, each behind what goes before its kind."""
    if pooler.late is None:
        return [(Side(first), Side(second)) for first, second in pairs]
    before, other = pooler.late.prefixes
    return [(Side(before + query, True), Side(other + document)) for query, document in pairs]


def scoring_task(pooler: PoolerFacts) -> PoolingTask:
    """What such a model makes of a text that is to be compared."""
    return "score" if pooler.late is None else "token_embed"


def paired(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of two texts or lists of them: one with each, or in order. Raises RequestError."""
    left = [first] if isinstance(first, str) else list(first)
    right = [second] if isinstance(second, str) else list(second)
    if not left or not right:
        raise RequestError("both sides of a score need at least one text", param="text_2")
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise RequestError(
            f"{len(left)} texts cannot be scored with {len(right)}: send one, or as many on both sides", param="text_2"
        )
    return list(zip(left, right, strict=True))
