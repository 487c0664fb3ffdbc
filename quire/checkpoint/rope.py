"""How a checkpoint writes its rotary embedding, in both spellings, as one typed value.

Old configs have `rope_theta` and `rope_scaling`, new ones a dict `rope_parameters`; types have older names. This is
the one place that knows. `layers/rope.py` turns the facts into frequencies, `read.py` derives the context length from
them.
"""

from typing import Annotated, Any

import msgspec

from quire.base.errors import CheckpointError

KINDS = ("default", "linear", "dynamic", "ntk", "llama3", "yarn", "longrope")
OLD_NAMES = {"su": "longrope"}
OUTSIDE = ("rope_theta", "partial_rotary_factor")
"""What old configs keep outside of `rope_scaling`."""


class RopeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A rotary embedding as the checkpoint describes it.

    Attributes:
        kind: one of KINDS, how frequencies are stretched beyond the original context.
        rope_theta: base of the geometric series of wavelengths.
        partial_rotary_factor: share of each head that is rotated.
        factor: how far the context was stretched.
        original_context: tokens of the original training, where the kind needs them.
        low_freq_factor, high_freq_factor: llama3's bounds of the band that is blended.
        beta_fast, beta_slow, truncate, mscale, mscale_all_dim: yarn's ramp and temperature.
        attention_factor: scale of the rotated vectors; None is worked out from `factor`.
        short_factor, long_factor: longrope's divisor of each frequency, below and beyond the original context.
        max_positions: `max_position_embeddings`.
    """

    kind: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    original_context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    max_positions: int = 0


def rope_facts(config: dict[str, Any], layer_type: str = "full_attention") -> RopeFacts:
    """The rotary embedding of `config`, in layers of `layer_type` where they differ.

    Raises CheckpointError for a kind or value that is not understood.
    """
    values = {"max_positions": config.get("max_position_embeddings", 0), **_spelled(config, layer_type)}
    kind = _kind(values)
    if kind not in KINDS:
        raise CheckpointError(f"config.json: rope type {kind!r} is not supported; known: {', '.join(KINDS)}")
    # None stands for "not given": the struct's default applies.
    given = {key: value for key, value in values.items() if value is not None}
    try:
        facts = msgspec.convert({**given, "kind": kind}, RopeFacts)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json: rope parameters: {error}") from None
    _check(facts)
    if "factor" not in given and facts.original_context:
        return msgspec.structs.replace(facts, factor=facts.max_positions / facts.original_context)
    return facts


def one_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without `rope_scaling` beside `rope_parameters`, in whose place it counts: it is what people override.

    What it does not name of OUTSIDE stays as it was, which transformers would forget. Where layers differ it is that of
    layers with full attention, unless it names types of layers itself. Raises CheckpointError where there are none.
    """
    inner, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    if not (isinstance(inner, dict) and isinstance(scaling, dict) and inner and scaling):
        return config
    apart, given = _types(inner), dict(scaling)
    if apart and not _types(given):
        if "full_attention" not in apart:
            raise CheckpointError(f"config.json: rope_parameters has {', '.join(apart)}; say which rope_scaling is of")
        given = {"full_attention": scaling}
    old = {kind: inner[kind] for kind in apart} if apart else dict.fromkeys(_types(given), inner)
    new = {kind: {**_outside(old.get(kind, {})), **given[kind]} for kind in _types(given)}
    made: dict[str, Any] = {**old, **new} if new else {**_outside(inner), **given}
    return {**{key: value for key, value in config.items() if key != "rope_scaling"}, "rope_parameters": made}


def unscaled(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with `rope_parameters`, if it has them, that stretch nothing: what rope_scaling=null overrides."""
    inner = config.get("rope_parameters")
    if not isinstance(inner, dict):
        return config
    plain: dict[str, Any] = {kind: {"rope_type": "default", **_outside(inner[kind])} for kind in _types(inner)}
    return {**config, "rope_parameters": plain or {"rope_type": "default", **_outside(inner)}}


def _types(parameters: dict[str, Any]) -> list[str]:
    """The types of layers that parameters are of, each with its own; none where all layers have the same."""
    return [key for key, value in parameters.items() if isinstance(value, dict)]


def _outside(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: parameters[key] for key in OUTSIDE if key in parameters}


def rope_kind(config: dict[str, Any]) -> str:
    """How frequencies are stretched, as the config calls it: one of KINDS, or a name that only others understand."""
    return _kind(_spelled(config, "full_attention"))


def _kind(values: dict[str, Any]) -> str:
    """Takes the kind out of spelled values."""
    kind = str(values.pop("rope_type", None) or values.pop("type", None) or "default")
    return OLD_NAMES.get(kind, kind)


def is_per_layer(config: dict[str, Any]) -> bool:
    """Whether types of layers have rotary embeddings of their own; max_position_embeddings then is what they reach."""
    inner = config.get("rope_parameters")
    nested = isinstance(inner, dict) and any(isinstance(value, dict) for value in inner.values())
    return nested or config.get("rope_local_base_freq") is not None


def _spelled(config: dict[str, Any], layer_type: str) -> dict[str, Any]:
    """The parameters as one dict, whichever way they are written; a field outside the dict yields to one inside."""
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(inner, dict):
        raise CheckpointError(f"config.json: rope_parameters must be an object, not {inner!r}")
    nested = _types(inner)
    local = config.get("rope_local_base_freq")
    if nested:
        if layer_type not in nested:
            raise CheckpointError(f"config.json: rope_parameters has {', '.join(nested)}, but no {layer_type}")
        inner = inner[layer_type]
    elif local is not None and layer_type == "sliding_attention":
        inner = {"rope_theta": local}
    values = dict(inner)
    for key in OUTSIDE:
        if values.get(key) is None:
            values[key] = config.get(key)
    # Phi-3 keeps the original context outside the dict, and then that one counts.
    outer = config.get("original_max_position_embeddings")
    values["original_context"] = outer or values.pop("original_max_position_embeddings", None)
    return values


def _check(facts: RopeFacts) -> None:
    if not facts.rope_theta > 0 or not facts.factor > 0 or not 0 < facts.partial_rotary_factor <= 1:
        raise CheckpointError(
            f"config.json: rope_theta={facts.rope_theta}, factor={facts.factor} must be positive and "
            f"partial_rotary_factor={facts.partial_rotary_factor} between 0 and 1"
        )
    if facts.kind == "longrope" and not (facts.short_factor and facts.long_factor and facts.original_context):
        raise CheckpointError(
            "config.json: longrope needs short_factor, long_factor and original_max_position_embeddings"
        )
