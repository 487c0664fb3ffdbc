"""What a device's ceilings allow for a workload: the time of its bytes and operations, with nothing lost in between.

The workload is replayed as an ideal engine would run it: prompts in chunks, a shared head once, then all sequences one
token a step. A step takes the longer of its bytes at the read ceiling and its operations at the matrix ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quire.cli.workloads import Work

from .shapes import Counts

CHUNK_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read per second, and bf16 operations per second; what a device reached, or is assumed to."""

    read: float
    matrix: float


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds, and the bytes and operations that they are made of."""

    seconds: float
    nbytes: float
    operations: float


@dataclass(frozen=True, slots=True)
class Replay:
    """A model on a device.

    Args:
        counts: of the model.
        ceilings: of the device.
        weight_bytes, state_bytes: of one entry of the weights, and of keys and values.
    """

    counts: Counts
    ceilings: Ceilings
    weight_bytes: float = 2
    state_bytes: float = 2

    def bound(self, works: Sequence[Work], head: int = 0) -> Bound:
        """The bound of `works`, whose first `head` prompt tokens are the same."""
        prefill = self._prefill(works, head)
        lengths = sorted((work.output_tokens for work in works), reverse=True)
        total = prefill
        running = list(works)
        for made in range(1, lengths[0] if lengths else 0):
            running = [work for work in running if work.output_tokens > made]
            own = sum(len(work.prompt) - head + made for work in running)
            context = own + len(running) * head
            total = _sum(total, self._step(len(running), len(running), own + head, context))
        return total

    def _prefill(self, works: Sequence[Work], head: int) -> Bound:
        """All prompts, in chunks; the first token comes with them."""
        tokens = head + sum(len(work.prompt) - head for work in works)
        context = _triangle(head) + sum(_triangle(len(work.prompt)) - _triangle(head) for work in works)
        state = sum(len(work.prompt) for work in works)
        chunks = max(1, -(-tokens // CHUNK_TOKENS))
        step = self._step(tokens / chunks, len(works) / chunks, state / chunks, context / chunks)
        return Bound(step.seconds * chunks, step.nbytes * chunks, step.operations * chunks)

    def _step(self, tokens: float, samples: float, state: float, context: float) -> Bound:
        """`tokens` computed, `samples` logits, `state` tokens of keys and values read, `context` pairs attended."""
        c = self.counts
        touched = c.experts * (1 - (1 - c.chosen / c.experts) ** tokens) if c.experts else 0
        weights = c.layers * (c.attention + c.mlp + touched * c.expert) + c.head
        nbytes = weights * self.weight_bytes + state * c.layers * c.state_width * self.state_bytes
        active = c.layers * (c.attention + c.mlp + c.chosen * c.expert)
        # Two operations per multiplication, one product with the keys and one with the values.
        operations = 2 * (tokens * active + samples * c.head) + 4 * context * c.layers * c.query_width
        return Bound(max(nbytes / self.ceilings.read, operations / self.ceilings.matrix), nbytes, operations)


def _triangle(n: int) -> float:
    return n * (n + 1) / 2


def _sum(a: Bound, b: Bound) -> Bound:
    return Bound(a.seconds + b.seconds, a.nbytes + b.nbytes, a.operations + b.operations)
