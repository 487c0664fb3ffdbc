"""The order of a layer's parts: where its norms stand, and whether attention and feed-forward run one after the other.

A block takes and returns a `Stream`; how that enters the next block is told in `norm_linear.py`.
"""

from torch import Tensor, nn

from quire.layers.attention import Attention
from quire.layers.build import Build
from quire.layers.delta_net import GatedDeltaNet
from quire.layers.last import LastTokens, last_tokens
from quire.layers.latent import LatentAttention
from quire.layers.mamba import Mamba
from quire.layers.mlp import MLP, GatedMLP
from quire.layers.moe import MoE, ParallelSum
from quire.layers.norm import Norm, RMSNorm
from quire.layers.norm_linear import NormLinear, Stream
from quire.layers.whole import Whole, whole_layer
from quire.ops.step import StepInputs

FeedForward = GatedMLP | MLP | MoE | ParallelSum
Mixer = Attention | LatentAttention | GatedDeltaNet | Mamba
"""Where tokens of a sequence learn of each other: `qkv` is the first product, `mix` the rest."""


class Block(nn.Module):
    """A layer of a decoder."""

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer."""
        raise NotImplementedError

    def last(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer, of each sequence's last token alone; its state is that of all tokens."""
        return self.forward(stream, step).at(step.last_tokens)


class PreNorm(Block):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        scale: what both add is multiplied by.
    """

    def __init__(
        self,
        b: Build,
        norms: tuple[Norm, Norm],
        attention: Mixer,
        mlp: FeedForward,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.mesh, self.scale = b.mesh, scale
        self.before_attention, self.before_mlp = norms
        self.attention, self.mlp = attention, mlp
        self._qkv = NormLinear(b, self.before_attention, attention.qkv)
        self._gated = NormLinear(b, self.before_mlp, mlp.gate_up, mlp) if isinstance(mlp, GatedMLP) else None
        self._whole: Whole | None = None
        if isinstance(mlp, GatedMLP) and isinstance(attention, Attention) and scale == 1.0:
            first, second = norms
            if isinstance(first, RMSNorm) and isinstance(second, RMSNorm):
                self._whole = whole_layer(b, (first, second), attention, mlp)
        self._last: LastTokens | None = None
        if self._whole is None and isinstance(attention, Attention):
            self._last = last_tokens(b, attention)

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after both blocks."""
        if self._whole is not None:
            return self._whole.forward(stream, step)
        qkv, residual = stream.enter(self._qkv, self.mesh)
        return self._fed(Stream(residual, self._scaled(self.attention.mix(qkv, step)), partial=True))

    def last(self, stream: Stream, step: StepInputs) -> Stream:
        """See Block. What follows keys and values is computed for the last tokens alone."""
        if self._whole is not None:
            return self._whole.last(stream, step)
        if self._last is None or not self._last.pays(step):
            return super().last(stream, step)
        qkv, residual = stream.enter(self._qkv, self.mesh)
        mixed = self._scaled(self._last.mix(qkv, step))
        return self._fed(Stream(residual[step.last_tokens], mixed, partial=True))

    def _fed(self, stream: Stream) -> Stream:
        """The stream after the feed-forward part."""
        mlp, joint = self.mlp, self._gated
        if joint is None or not isinstance(mlp, GatedMLP):
            x, residual = stream.join(self.before_mlp, self.mesh)
            return Stream(residual, self._scaled(mlp.forward(x)), partial=True)
        gated, residual = stream.enter(joint, self.mesh)
        return Stream(residual, self._scaled(mlp.down.forward(gated)), partial=True)

    def _scaled(self, delta: Tensor) -> Tensor:
        return delta if self.scale == 1.0 else delta * self.scale


class Single(Block):
    """x + part(norm(x)): a layer that mixes tokens or feeds forward, and does not do both."""

    def __init__(self, b: Build, norm: Norm, part: Mixer | FeedForward) -> None:
        super().__init__()
        self.mesh, self.norm, self.part = b.mesh, norm, part
        self._qkv = None if isinstance(part, FeedForward) else NormLinear(b, norm, part.qkv)

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer."""
        part = self.part
        if isinstance(part, FeedForward):
            x, residual = stream.join(self.norm, self.mesh)
            return Stream(residual, part.forward(x), partial=True)
        assert self._qkv is not None, "what mixes tokens has a joint"
        qkv, residual = stream.enter(self._qkv, self.mesh)
        return Stream(residual, part.mix(qkv, step), partial=True)


class Sandwich(Block):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))): what a block adds is normed before it is added."""

    def __init__(self, b: Build, norms: tuple[Norm, Norm, Norm, Norm], attention: Attention, mlp: GatedMLP) -> None:
        """`norms`: before and after attention, before and after the feed-forward layer."""
        super().__init__()
        self.mesh = b.mesh
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        self.attention, self.mlp = attention, mlp
        self._qkv = NormLinear(b, self.before_attention, attention.qkv)
        self._gated = NormLinear(b, self.before_mlp, mlp.gate_up, mlp)

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after both blocks."""
        qkv, residual = stream.enter(self._qkv, self.mesh)
        stream = Stream(residual, self.attention.mix(qkv, step), partial=True)
        stream = Stream(residual, self.after_attention.forward(stream.whole(self.mesh)))
        gated, residual = stream.enter(self._gated, self.mesh)
        stream = Stream(residual, self.mlp.down.forward(gated), partial=True)
        return Stream(residual, self.after_mlp.forward(stream.whole(self.mesh)))


class NormsBehind(Block):
    """A layer with no norm before attention or the feed-forward layer, but one behind each."""

    def __init__(self, b: Build, norms: tuple[Norm, Norm], attention: Attention, mlp: FeedForward) -> None:
        """`norms`: after attention, after the feed-forward layer."""
        super().__init__()
        self.mesh = b.mesh
        self.after_attention, self.after_mlp = norms
        self.attention, self.mlp = attention, mlp


class PostNorm(NormsBehind):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after both blocks."""
        residual = stream.total(self.mesh)
        added = Stream(residual, self.attention.forward(residual, step), partial=True).whole(self.mesh)
        residual = residual + self.after_attention.forward(added)
        added = Stream(residual, self.mlp.forward(residual), partial=True).whole(self.mesh)
        return Stream(residual, self.after_mlp.forward(added))


class NormedSum(NormsBehind):
    """norm(x + attention(x)), then norm(x + mlp(x)): nothing goes by a norm, as transformers were at first."""

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after both blocks, without a delta."""
        x = stream.total(self.mesh)
        x, _ = Stream(x, self.attention.forward(x, step), partial=True).join(self.after_attention, self.mesh)
        return Stream(Stream(x, self.mlp.forward(x), partial=True).join(self.after_mlp, self.mesh)[0])


class Parallel(Block):
    """x + attention(norm(x)) + mlp(norm(x)), added up once over the ranks.

    Args:
        norms: one for both, or one for each.
    """

    def __init__(
        self, b: Build, norms: tuple[Norm] | tuple[Norm, Norm], attention: Attention, mlp: FeedForward
    ) -> None:
        super().__init__()
        self.mesh = b.mesh
        self.norms = nn.ModuleList(norms)
        self._first, self._second = norms[0], norms[1] if len(norms) == 2 else None
        self.attention, self.mlp = attention, mlp

    def forward(self, stream: Stream, step: StepInputs) -> Stream:
        """The stream after the layer."""
        x, residual = stream.join(self._first, self.mesh)
        attended = self.attention.forward(x, step)
        if self._second is not None:
            x = self._second.forward(residual)
        return Stream(residual, attended + self.mlp.forward(x), partial=True)
