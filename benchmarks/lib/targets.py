"""What is wanted of each cell of the GPU table, and what vLLM 0.24.0 reached on one H200.

Its figures were reported to us for the same requests on the same kind of card; no log of theirs is here.

Output tokens per second; prompt and output tokens per second for `prefill`; seconds for `long` and the start-ups.
"""

from dataclasses import dataclass

COLD, WARM = "ready, empty caches", "ready, second start"
FP8_MIXED = "mixed, fp8 KV cache"


@dataclass(frozen=True, slots=True)
class Target:
    """A cell: vLLM's figure (None where it was not measured), the floor and the aim."""

    vllm: float | None
    floor: float
    aim: float


TARGETS: dict[str, dict[str, Target]] = {
    "qwen3-0.6b": {
        "decode-1": Target(609.5, 1400, 2000),
        "decode-64": Target(14421.9, 15500, 19500),
        "prefill": Target(393520.6, 395000, 450000),
        "long": Target(3.1734, 3.2, 3.05),
        "prefix": Target(16734.7, 30000, 60000),
        "mixed": Target(27283.5, 29000, 33000),
        FP8_MIXED: Target(None, 42000, 50000),
        COLD: Target(68.9, 20, 8),
        WARM: Target(34.2, 8, 5),
    },
    "llama-8b": {
        "decode-1": Target(202.7, 240, 265),
        "decode-64": Target(4693.5, 4700, 5100),
        "prefill": Target(42712.6, 42500, 43500),
        "long": Target(10.8192, 11.0, 10.5),
        "prefix": Target(8860.1, 12000, 15500),
        "mixed": Target(11194.6, 11200, 12400),
        FP8_MIXED: Target(None, 13500, 15000),
        COLD: Target(66.2, 20, 10),
        WARM: Target(None, 10, 6),
    },
    "qwen3-30b-a3b": {
        "decode-1": Target(229.4, 320, 500),
        "decode-64": Target(2807.2, 2850, 3150),
        "prefill": Target(69285.7, 69000, 78000),
        "long": Target(10.3131, 10.4, 9.8),
        "prefix": Target(7462.8, 9500, 11500),
        "mixed": Target(9310.0, 9300, 11000),
        COLD: Target(88.4, 35, 15),
        WARM: Target(None, 20, 10),
    },
}

VLLM_WALL_S: dict[str, dict[str, float]] = {
    "qwen3-0.6b": {"decode-1": 0.42, "decode-64": 1.14, "prefill": 0.33, "long": 3.2, "prefix": 0.98, "mixed": 10.4},
    "llama-8b": {"decode-1": 1.26, "decode-64": 3.5, "prefill": 3.1, "long": 10.8, "prefix": 1.85, "mixed": 25.3},
    "qwen3-30b-a3b": {"decode-1": 1.12, "decode-64": 5.8, "prefill": 1.9, "long": 10.3, "prefix": 2.2, "mixed": 30.4},
}
"""Seconds of one run; from them follows what fits into a budget of time."""


def metric(workload: str) -> tuple[str, str]:
    """What a workload is judged by, and its unit."""
    if workload.startswith("ready"):
        return "process start to ready", "s"
    if workload == "long":
        return "wall", "s"
    if workload == "prefill":
        return "prompt and output tokens per second", "tok/s"
    return "output tokens per second", "tok/s"


def value_of(workload: str, seconds: float, prompt_tokens: int, output_tokens: int) -> float:
    """The figure of a workload that took `seconds`, in its metric."""
    if metric(workload)[1] == "s":
        return seconds
    return (output_tokens + (prompt_tokens if workload == "prefill" else 0)) / seconds
