"""A layer that one op computes as a whole, where a provider has such an op and no mesh cuts the layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from quire.layers.attention import Attention
from quire.layers.build import Build
from quire.layers.mlp import GatedMLP
from quire.layers.norm import RMSNorm
from quire.layers.norm_linear import Stream
from quire.ops.layer import LayerSpec, LayerWeights, pre_norm_layer
from quire.ops.registry import REFERENCE
from quire.ops.step import StepInputs
from quire.ops.stored import StoredSpec


@dataclass(frozen=True, slots=True)
class Whole:
    """The op, and what it is called with.

    Attributes:
        apply: computes the layer.
        attention: whose pages are read and written.
    """

    apply: Callable[..., tuple[Tensor, Tensor]]
    weights: LayerWeights
    attention: Attention
    spec: LayerSpec

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer."""
        return self._apply(stream, step, self.spec)

    def last(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer, of each sequence's last token alone; pages are written for all."""
        return self._apply(stream, step, replace(self.spec, last=True))

    def _apply(self, stream: Stream, step: StepInputs, spec: LayerSpec) -> Stream:
        pages = self.attention.state.pages
        return Stream(*self.apply(stream.residual, stream.delta, self.weights, pages, step, spec))


def whole_layer(b: Build, norms: tuple[RMSNorm, RMSNorm], attention: Attention, mlp: GatedMLP) -> Whole | None:
    """The layer as a whole, or None where it is computed part by part."""
    products = attention.qkv, attention.out, mlp.gate_up, mlp.down
    specs = [product.spec for product in products]
    qkv, out, gate_up, down = (spec if isinstance(spec, StoredSpec) else None for spec in specs)
    changed = attention.before is not None or attention.gated
    if changed or b.mesh.size > 1 or qkv is None or out is None or gate_up is None or down is None:
        return None
    spec = LayerSpec(norms[0].spec, qkv, attention.spec, out, norms[1].spec, gate_up, mlp.spec, down)
    if b.choose(pre_norm_layer, spec).provider == REFERENCE:
        return None
    first, second, third, fourth = products
    weights = LayerWeights(
        (norms[0].weight, norms[1].weight),
        attention.head_weights,
        (first.weight, second.weight, third.weight, fourth.weight),
        (first.bias, second.bias, third.bias, fourth.bias),
    )
    return Whole(b.op(pre_norm_layer, spec), weights, attention, spec)
