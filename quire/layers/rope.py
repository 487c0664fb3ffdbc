"""The angles of rotary embeddings: per kind of stretching the frequencies, from them one table for all layers.

Tables are made once, for the positions that the engine will serve, so an angle depends on a token's position alone:
not on its batch, its chunk or how long its sequence grows. Kinds that switch with the length (longrope, dynamic)
therefore switch with the engine's max_model_len; see `docs/add-a-model.md`.
"""

import math

import torch
from torch import Tensor

from quire.checkpoint.rope import RopeFacts
from quire.layers.build import Build

UNTURNED = 2
"""Values that kernels rotate in heads without a rotary embedding: one pair, by an angle of 0."""


def rotary_dim(facts: RopeFacts | None, head_dim: int) -> int:
    """How many values of each head are rotated."""
    if facts is None:
        return UNTURNED
    return int(head_dim * facts.partial_rotary_factor)


def rope_table(b: Build, facts: RopeFacts | None, head_dim: int) -> Tensor:
    """(positions, rotary_dim) float32: cosines, then sines, of each position's angles. Shared through the Build."""
    length = b.max_model_len or (facts.max_positions if facts else 1)
    key = (facts, head_dim, length)
    if key not in b.tables and facts is None:
        b.tables[key] = torch.tensor([1.0, 0.0]).repeat(length, 1).to(b.device)
    elif key not in b.tables and facts is not None:
        frequencies, scale = _frequencies(facts, rotary_dim(facts, head_dim), length)
        angle = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        b.tables[key] = (torch.cat([angle.cos(), angle.sin()], dim=-1) * scale).to(b.device)
    return b.tables[key]


def _frequencies(facts: RopeFacts, dim: int, length: int) -> tuple[Tensor, float]:
    """Radians per token of each pair, (dim / 2,) float32, and what the rotated vectors are multiplied by."""
    if facts.kind == "linear":
        return _plain(facts.rope_theta, dim) / facts.factor, 1.0
    if facts.kind == "ntk":
        return _ntk(facts, dim), 1.0
    if facts.kind == "dynamic":
        return _dynamic(facts, dim, length), 1.0
    if facts.kind == "llama3":
        return _llama3(facts, dim), 1.0
    if facts.kind == "yarn":
        return _yarn(facts, dim)
    if facts.kind == "longrope":
        return _longrope(facts, dim, length)
    return _plain(facts.rope_theta, dim), 1.0


def _plain(theta: float, dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _ntk(facts: RopeFacts, dim: int) -> Tensor:
    """A larger theta, and all wavelengths longer by as much as its first pair loses by that (GTE's own code)."""
    longer: float = facts.factor ** (2 / dim)
    return _plain(facts.rope_theta * facts.factor, dim) / longer


def _dynamic(facts: RopeFacts, dim: int, length: int) -> Tensor:
    """Raises theta so that the longest wavelength grows with the context ("NTK-aware", bloc97 and emozilla, 2023)."""
    reach = max(length, facts.max_positions) / facts.max_positions
    stretch = facts.factor * reach - (facts.factor - 1)
    return _plain(facts.rope_theta * stretch ** (dim / (dim - 2)), dim)


def _llama3(facts: RopeFacts, dim: int) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    plain = _plain(facts.rope_theta, dim)
    turns = (facts.original_context or facts.max_positions) * plain / (2 * math.pi)
    blend = (turns - facts.low_freq_factor) / (facts.high_freq_factor - facts.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * plain / facts.factor + blend * plain


def _yarn(facts: RopeFacts, dim: int) -> tuple[Tensor, float]:
    """A ramp over the pairs between stretched and kept, and a temperature (Peng et al., "YaRN", 2023)."""
    original = facts.original_context or facts.max_positions

    def pair_with(turns: float) -> float:
        """The (fractional) pair that makes so many turns over the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(facts.rope_theta))

    low, high = pair_with(facts.beta_fast), pair_with(facts.beta_slow)
    if facts.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = max(high - low, 0.001)
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    plain = _plain(facts.rope_theta, dim)
    return plain / facts.factor * stretched + plain * (1 - stretched), _yarn_scale(facts)


def _yarn_scale(facts: RopeFacts) -> float:
    if facts.attention_factor is not None:
        return facts.attention_factor

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(facts.factor) + 1.0 if facts.factor > 1 else 1.0

    if facts.mscale and facts.mscale_all_dim:
        return scale(facts.mscale) / scale(facts.mscale_all_dim)
    return scale(1.0)


def _longrope(facts: RopeFacts, dim: int, length: int) -> tuple[Tensor, float]:
    """A searched divisor per pair, one list up to the original context, one beyond (Ding et al., "LongRoPE", 2024)."""
    original = facts.original_context or facts.max_positions
    divisors = torch.tensor(facts.long_factor if length > original else facts.short_factor, dtype=torch.float32)
    if facts.attention_factor is not None:
        scale = facts.attention_factor
    else:
        scale = math.sqrt(1 + math.log(facts.factor) / math.log(original)) if facts.factor > 1 else 1.0
    return _plain(facts.rope_theta, dim) / divisors, scale
