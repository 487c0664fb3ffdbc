"""Which sizes of steps are recorded as graphs, and which run once before the engine is ready. Used by `resolve`."""

GRAPH_ROWS = (128, 160, 208, 256, 320, 384, 432)
"""Batch sizes between 128 and 512 that cuBLAS 13.0 takes least time for on an H200: a layer of Llama-8B takes it 268 us
with 432 rows, 400 with 448, 292 with 464; and 184 with 224, 180 with 256."""


def graph_rows(rows: int) -> list[int]:
    """Batch sizes worth recording: dense where a row more or less counts, sparse above; the last one is `rows`.

    1, 2, 4, 8, then steps of 8 to 32, of 16 to 128, those of GRAPH_ROWS to 512, steps of 128 beyond.
    """
    sizes = [1, 2, 4]
    for start, stop, step in ((8, 32, 8), (32, 128, 16), (512, rows, 128)):
        sizes += range(start, min(stop, rows), step)
    return [*(size for size in sorted([*sizes, *GRAPH_ROWS]) if size < rows), rows]


GRAPH_TOKENS = (*range(128, 769, 128), 1024)
"""Tokens of prompts for which steps are recorded. What a step has less is computed for nobody: with 8 billion weights
14 ms become 19 in room for 768 instead of 512. Larger steps keep the device busy for longer than launching takes."""


def graph_tokens(budget: int) -> list[int]:
    """Of GRAPH_TOKENS those within `budget`."""
    return [size for size in GRAPH_TOKENS if size <= budget]


def graph_singles(rows: int) -> list[int]:
    """Numbers of decoding sequences beside which prompts are recorded. Rows that are missing are computed, too."""
    return [*(size for size in (0, 16, 64, 256) if size < rows), rows]


def warm_tokens(budget: int) -> list[int]:
    """Step sizes at which kernels choose other variants: beyond each power of two up to `budget`."""
    return [size + 1 for size in (1 << n for n in range(1, 14)) if size < budget] or [budget]
