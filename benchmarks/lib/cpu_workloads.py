"""The workloads of the CPU table, each a function of a seed, and what a machine's limits make of them.

Greedy, past the end of the text, so that the work is the same whatever the weights are. Plain Python: engines read
these in environments of their own.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

FIRST_ID, LAST_ID = 1000, 100_000
Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that arrive at once.

    Attributes:
        prompts, outputs: token ids and number of new tokens of each request.
        metric: "decode tok/s" (new tokens less the time for a first one), "prompt tok/s", "output tok/s" or "seconds".
    """

    prompts: list[Tokens]
    outputs: list[int]
    metric: str

    def score(self, seconds: float, first: float = 0.0) -> float:
        """The figure that `seconds` are, where the first token alone took `first`."""
        if self.metric == "decode tok/s":
            return (sum(self.outputs) - len(self.outputs)) / (seconds - first)
        if self.metric == "prompt tok/s":
            return sum(map(len, self.prompts)) / seconds
        return sum(self.outputs) / seconds if self.metric == "output tok/s" else seconds


def a_decode(seed: int = 0) -> Workload:
    """A: one request of 128 + 128 tokens; decoding alone counts."""
    return Workload([_tokens(_rng("A", seed), 128)], [128], "decode tok/s")


def b_prefill(seed: int = 0) -> Workload:
    """B: one prompt of 1,024 tokens."""
    return Workload([_tokens(_rng("B", seed), 1024)], [1], "prompt tok/s")


def c1_batch(seed: int = 0) -> Workload:
    """C1: 16 requests of 128 + 64 tokens."""
    rng = _rng("C1", seed)
    return Workload([_tokens(rng, 128) for _ in range(16)], [64] * 16, "output tok/s")


def c2_mixed(seed: int = 0) -> Workload:
    """C2: 32 requests of 32 to 512 + 16 to 128 tokens."""
    rng = _rng("C2", seed)
    prompts = [_tokens(rng, rng.randint(32, 512)) for _ in range(32)]
    return Workload(prompts, [rng.randint(16, 128) for _ in prompts], "output tok/s")


def d_shared(seed: int = 0) -> Workload:
    """D: 16 requests that share 1,024 tokens and have 32 of their own, 32 new ones each."""
    rng = _rng("D", seed)
    shared = _tokens(rng, 1024)
    return Workload([shared + _tokens(rng, 32) for _ in range(16)], [32] * 16, "seconds")


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "A": a_decode,
    "B": b_prefill,
    "C1": c1_batch,
    "C2": c2_mixed,
    "D": d_shared,
}


def lower_is_better(label: str) -> bool:
    """Whether the figure of a workload, or of E, is a time."""
    return label not in WORKLOADS or WORKLOADS[label](0).metric == "seconds"


def _rng(name: str, seed: int) -> random.Random:
    """Of its own for each workload: no two share a beginning."""
    return random.Random(f"{name} {seed}")


def _tokens(rng: random.Random, count: int) -> Tokens:
    return [rng.randrange(FIRST_ID, LAST_ID) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Machine:
    """What it can do: bytes read and operations, per second."""

    bandwidth: float
    operations: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs.

    Attributes:
        weight_bytes: of all weights.
        body, head: weights that a token is multiplied with, those of the head apart.
        state_bytes: of a token's keys and values.
        pair: operations of attention for each pair of a query and a key.
    """

    weight_bytes: float
    body: float
    head: float
    state_bytes: float
    pair: float


def limit(workload: Workload, cost: Cost, machine: Machine) -> float:
    """The figure of an engine that wastes nothing: every token of a prompt computed once, prefixes once for all."""
    shared = _shared(workload.prompts)
    own = [len(prompt) - shared for prompt in workload.prompts]
    pairs = shared**2 / 2 + sum(count * (shared + count / 2) for count in own)
    multiplied = cost.body * (shared + sum(own)) + cost.head * len(own)
    prefill = (2 * multiplied + cost.pair * pairs) / machine.operations
    decode = 0.0
    for done in range(1, max(workload.outputs)):
        rows = [len(p) + done for p, n in zip(workload.prompts, workload.outputs, strict=True) if n > done]
        state = shared + sum(length - shared for length in rows)
        moved = (cost.weight_bytes + state * cost.state_bytes) / machine.bandwidth
        operations = 2 * (cost.body + cost.head) * len(rows) + cost.pair * sum(rows)
        decode += max(moved, operations / machine.operations)
    return workload.score(prefill + decode, prefill)


def _shared(prompts: list[Tokens]) -> int:
    """Tokens that all of several prompts begin with."""
    if len(prompts) < 2:
        return 0
    return next((i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1), 0)
