"""Scales of keys and values that a quantized checkpoint brings, for pages of 8 bits.

Exporters put them beside the projections, beside the attention or beside the cache. Used by `attention.py` only.
"""

from quire.base.errors import CheckpointError
from quire.layers.build import Build

PLACES = (
    "{kind}_proj.{kind}_scale",
    "{kind}_proj.output_scale",
    "qkv_proj.{kind}_scale",
    "{kind}_scale",
    "attn.{kind}_scale",
    "{kind}_cache.scale",
    "kv_scale",
)


def cache_scales(b: Build) -> tuple[float, float]:
    """What stored keys and values of the attention at `b` are worth, times themselves; 1 where nothing is said.

    Raises CheckpointError for a scale that is not above 0.
    """
    if b.kv_dtype is None or b.kv_dtype.itemsize != 1:
        return 1.0, 1.0
    return _scale(b, "k"), _scale(b, "v")


def _scale(b: Build, kind: str) -> float:
    found = next((name for name in (place.format(kind=kind) for place in PLACES) if b.holds(name)), None)
    if found is None or b.checkpoint is None:
        return 1.0
    # One for all heads: where each has its own, the largest is above none.
    value = float(b.checkpoint.source.read(b.name(found)).float().max())
    if not value > 0 or value == float("inf"):
        raise CheckpointError(f"tensor {b.name(found)} is {value}; a scale must be above 0 and finite")
    return value
