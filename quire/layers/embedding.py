"""The two ends of a model: the embedding that begins it and the head that ends it, both cut over the vocabulary; and
learned positions.

The table is padded with zero rows so that it divides over the ranks; ids of padding never occur and its logits are
cut off.
"""

from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.layers.build import Build
from quire.loading.recipe import Part, Weight
from quire.ops.linear import EmbeddingSpec, embedding
from quire.ops.stored import StoredRowsSpec, stored_embedding


def vocabulary_part(b: Build, vocab: int, size: int) -> Part:
    """A (vocab, size) table at this level, its rows cut over the ranks."""
    return Part("weight", (vocab, size), cut=0, pad=b.mesh.padded(vocab) - vocab)


class Embedding(nn.Module):
    """Rows of the embedding table. Each rank holds a run of rows."""

    def __init__(self, b: Build, vocab: int, size: int, head: str | None = None) -> None:
        """`head`: name of the head's weight where that is this table; some checkpoints hold it once more."""
        super().__init__()
        self.mesh = b.mesh
        part = vocabulary_part(b, vocab, size)
        self.weight = b.table(part) if head is None else b.matrix(part, again=(head,), head=True)
        rows, storage = self.weight.rows, self.weight.stored
        first, dtype, device = b.mesh.rank * rows, b.dtype_name, str(b.device)
        self.spec: EmbeddingSpec | StoredRowsSpec
        if storage is None:
            self.spec = EmbeddingSpec(vocab, rows, first, size, dtype, device)
            self._embed = b.op(embedding, self.spec)
        else:
            self.spec = StoredRowsSpec(storage, vocab, first, dtype, device)
            self._embed = b.op(stored_embedding, self.spec)

    def forward(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, size), whole on every rank."""
        found: Tensor = self._embed(ids, self.weight, self.spec)
        return self.mesh.all_reduce(found)


class Head(nn.Module):
    """Logits of the whole vocabulary. `weight` is the embedding's where the two are tied."""

    def __init__(self, b: Build, vocab: int, weight: Weight, bias: bool = False) -> None:
        super().__init__()
        self.mesh, self.vocab, self.weight = b.mesh, vocab, weight
        pad = b.mesh.padded(vocab) - vocab
        self.bias = b.weight(Part("bias", (vocab,), cut=0, pad=pad)) if bias else None
        self.spec, self._apply_op = b.product(weight, bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, size) to (n, vocab), whole on every rank."""
        share: Tensor = self._apply_op(hidden, self.weight, self.bias, self.spec)
        return self.mesh.all_gather(share)[:, : self.vocab]


class Positions(nn.Module):
    """A learned vector for each position, whole on every rank.

    Args:
        rows: of the table.
        offset: rows before that of position 0.

    Raises CheckpointError where the engine would serve positions that the table does not have.
    """

    def __init__(self, b: Build, rows: int, size: int, offset: int = 0) -> None:
        super().__init__()
        if b.max_model_len is not None and b.max_model_len > rows - offset:
            raise CheckpointError(
                f"{b.name('weight')} has learned vectors for {rows - offset} positions; "
                f"max_model_len={b.max_model_len} must not be more"
            )
        self.offset = offset
        self.weight = b.weight(Part("weight", (rows, size)))
        self.spec = EmbeddingSpec(rows, rows, 0, size, b.dtype_name, str(b.device))
        self._embed = b.op(embedding, self.spec)

    def forward(self, positions: Tensor) -> Tensor:
        """(tokens,) to (tokens, size)."""
        found: Tensor = self._embed(positions + self.offset, self.weight, self.spec)
        return found
