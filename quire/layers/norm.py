"""RMS norm and layer norm as layers, alone or with the residual addition before it."""

from torch import Tensor, nn

from quire.layers.build import Build
from quire.loading.recipe import Part
from quire.ops.norm import LayerNormSpec, NormSpec, add_layer_norm, add_rms_norm, layer_norm, rms_norm


class RMSNorm(nn.Module):
    """RMS norm over `size` values; `offset` is added to the weight when it is applied (1 for Gemma)."""

    def __init__(self, b: Build, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = b.weight(Part("weight", (size,)), center=1.0 - offset)
        self.spec = NormSpec(size, eps, offset, b.dtype_name, str(b.device))
        self._norm, self._add_norm = b.op(rms_norm, self.spec), b.op(add_rms_norm, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of (tokens, size)."""
        out: Tensor = self._norm(x, self.weight, self.spec)
        return out

    def add(self, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of residual + delta, and the sum itself; None adds nothing."""
        if delta is None:
            return self.forward(residual), residual
        normed, total = self._add_norm(residual, delta, self.weight, self.spec)
        return normed, total


class LayerNorm(nn.Module):
    """Layer norm over `size` values, with a bias, with a weight alone, or with neither."""

    def __init__(self, b: Build, size: int, eps: float, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.weight = b.weight(Part("weight", (size,)), center=1.0) if weight else None
        self.bias = b.weight(Part("bias", (size,))) if bias else None
        self.spec = LayerNormSpec(size, eps, b.dtype_name, str(b.device))
        self._norm, self._add_norm = b.op(layer_norm, self.spec), b.op(add_layer_norm, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of (tokens, size)."""
        out: Tensor = self._norm(x, self.weight, self.bias, self.spec)
        return out

    def add(self, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of residual + delta, and the sum itself; None adds nothing."""
        if delta is None:
            return self.forward(residual), residual
        normed, total = self._add_norm(residual, delta, self.weight, self.bias, self.spec)
        return normed, total


Norm = RMSNorm | LayerNorm
