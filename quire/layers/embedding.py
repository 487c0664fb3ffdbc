"""The vocabulary's two ends: the embedding that begins a model and the head that ends it, both cut over the vocabulary.

The table is padded with zero rows so that it divides over the ranks; ids of padding never occur and its logits are
cut off.
"""

from torch import Tensor, nn

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
        self.weight = b.weight(part) if head is None else b.matrix(part, again=(head,), head=True)
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

    def __init__(self, b: Build, vocab: int, weight: Weight) -> None:
        super().__init__()
        self.mesh, self.vocab, self.weight = b.mesh, vocab, weight
        self.spec, self._apply_op = b.product(weight, False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, size) to (n, vocab), whole on every rank."""
        share: Tensor = self._apply_op(hidden, self.weight, None, self.spec)
        return self.mesh.all_gather(share)[:, : self.vocab]
