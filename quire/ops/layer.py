"""The op that is a whole layer of a decoder: norm, attention, norm, gated feed-forward, in one call.

Its reference is the composition of small ops. A provider that has it spares the work between them, which on CPUs is a
tenth of a step of one token. Only for layers that no mesh cuts: nothing is summed over ranks within it.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend
from quire.ops.block import joined
from quire.ops.norm import NormSpec
from quire.ops.registry import op
from quire.ops.samples import normal
from quire.ops.step import StepInputs
from quire.ops.stored import OFFERS, StoredSpec, WeightSpec, storage_for, stored_linear
from quire.quantization.storage import Storage

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The specs of a layer's parts, in their order.

    Attributes:
        last: the layer is computed for each sequence's last token alone, but for keys and values.
    """

    before_attention: NormSpec
    qkv: StoredSpec
    attention: AttentionSpec
    out: StoredSpec
    before_mlp: NormSpec
    gate_up: StoredSpec
    gate: GateSpec
    down: StoredSpec
    last: bool = False

    @property
    def products(self) -> tuple[StoredSpec, StoredSpec, StoredSpec, StoredSpec]:
        """The four products."""
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of a layer's parts.

    Attributes:
        norms: (hidden,) each, before attention and before the feed-forward part.
        heads: what prepares queries and keys.
        weights, biases: of qkv, out, gate_up and down; weights as their specs store them, biases (outputs,) or None.
        derived: see `once`.
    """

    norms: tuple[Tensor, Tensor]
    heads: HeadWeights
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, worked out at the first call with `key`: a provider's own view of the weights."""
        if key not in self.derived:
            self.derived[key] = make()
        made: Made = self.derived[key]
        return made


def _samples() -> Iterator[tuple[LayerSpec, dict[str, Any]]]:
    for attention, inputs in attend.samples():
        usual = attention.step == "eager" and attention.kept == attention.dtype
        if usual and (attention.window is None or attention.norm_eps is None):
            for bits in (None, 8) if attention.dtype == "float32" and len(inputs["step"].seq_lens) == 4 else (None,):
                yield from _over(attention, inputs, bits)


def _over(attention: AttentionSpec, inputs: dict[str, Any], bits: Any) -> Iterator[tuple[LayerSpec, dict[str, Any]]]:
    """A layer of hidden size 24 around a sample of attention, stored in every way that there is."""
    dtype, hidden, inner = attention.dtype, 24, 20
    width = attention.heads * attention.head_dim
    shapes = (
        (sum(attention.parts) * attention.head_dim, hidden),
        (hidden, width),
        (2 * inner, hidden),
        (hidden, inner),
    )
    for way in ("", *OFFERS):
        found = [_stored(WeightSpec(*shape, bits, 32, dtype, "cpu"), way, seed) for seed, shape in enumerate(shapes)]
        stored = [one for one in found if one is not None]
        if len(stored) < len(shapes):
            continue
        bias = way != "" and attention.norm_eps is None
        specs = [StoredSpec(storage, bias, dtype) for storage, _ in stored]
        norm = NormSpec(hidden, 1e-6, 1.0 if bias else 0.0, dtype)
        gate = GateSpec(inner, "gelu_tanh" if bias else "silu", dtype)
        spec = LayerSpec(norm, specs[0], attention, specs[1], replace(norm, eps=1e-5), specs[2], gate, specs[3])
        biases = tuple(normal(dtype, shape[0], seed=9) if bias else None for shape in shapes)
        weights = LayerWeights(
            (normal(dtype, hidden, seed=5), normal(dtype, hidden, seed=6)),
            inputs["weights"],
            tuple(data for _, data in stored),  # type: ignore[arg-type]
            biases,  # type: ignore[arg-type]
        )
        tokens = len(inputs["step"].positions)
        for layer in (spec, replace(spec, last=True)):
            yield (
                layer,
                {
                    "residual": normal(dtype, tokens, hidden, seed=7),
                    "delta": normal(dtype, tokens, hidden, seed=8) if bias else None,
                    "weights": weights,
                    "pages": inputs["pages"],
                    "step": inputs["step"],
                    "spec": layer,
                },
            )


def _stored(wanted: WeightSpec, way: str, seed: int) -> tuple[Storage, Tensor] | None:
    storage = OFFERS[way](wanted) if way else storage_for(replace(wanted, bits=8), [])
    if storage is None:
        return None
    data = storage.allocate()
    values = torch.rand(wanted.outputs, wanted.inputs, generator=torch.Generator().manual_seed(seed)) - 0.5
    storage.put(data, 0, (values / wanted.inputs**0.5).to(normal(wanted.dtype, 1).dtype))
    return storage, data


# As of the products with stored weights.
TOLERANCE = {"float32": (2e-2, 5e-2), "bfloat16": (3e-2, 1e-1)}


@op(samples=_samples, tolerance=TOLERANCE, capturable=False)
def pre_norm_layer(
    residual: Tensor,
    delta: Tensor | None,
    weights: LayerWeights,
    pages: KVPages,
    step: StepInputs,
    spec: LayerSpec,
) -> tuple[Tensor, Tensor]:
    """x + attention(norm(x)), then x + mlp(norm(x)), of x = residual + delta.

    Args:
        residual: (tokens, hidden).
        delta: like `residual`; None adds nothing.

    Returns: the sum without what the feed-forward part adds, and that; each like `residual`, or with `spec.last`
        (sequences, hidden), anything for a sequence without tokens.
    """
    w, biases = weights.weights, weights.biases
    normed, total = joined(residual, delta, weights.norms[0], spec.before_attention)
    qkv = stored_linear(normed, w[0], biases[0], spec.qkv)
    attended = attend(qkv, weights.heads, pages, step, spec.attention)
    if spec.last:
        last = step.last_tokens[: len(step.seq_lens)]
        attended, total = attended[last], total[last]
    normed, total = joined(total, stored_linear(attended, w[1], biases[1], spec.out), weights.norms[1], spec.before_mlp)
    gated = gated_activation(stored_linear(normed, w[2], biases[2], spec.gate_up), spec.gate)
    return total, stored_linear(gated, w[3], biases[3], spec.down)
