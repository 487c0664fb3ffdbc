"""What layers with recurrent state have in common: a short convolution."""

from collections.abc import Sequence

from torch import Tensor, nn

from quire.layers.build import Build
from quire.loading.recipe import Part
from quire.ops.recurrent import ConvSpec, StatePages, causal_conv1d
from quire.ops.step import StepInputs


class Convolution(nn.Module):
    """A causal convolution of each channel by itself, over few tokens, and silu behind it.

    Args:
        b: at the convolution's module.
        parts: runs of channels, over all ranks, and how many neighbouring ranks hold the same of each.
        width: tokens that a result is made of.
    """

    def __init__(self, b: Build, parts: Sequence[tuple[int, int]], width: int, bias: bool) -> None:
        super().__init__()
        self.weight = b.weight(*_cut("weight", parts, (1, width)))
        self.bias = b.weight(*_cut("bias", parts, ())) if bias else None
        self.spec = ConvSpec(len(self.weight), width, bias, b.dtype_name, str(b.device))
        self._convolve = b.op(causal_conv1d, self.spec)

    @property
    def kept(self) -> tuple[int, int]:
        """Shape of the inputs that it keeps between steps."""
        return self.spec.width - 1, self.spec.channels

    def forward(self, x: Tensor, pages: StatePages, step: StepInputs) -> Tensor:
        """(tokens, channels) to the same."""
        out: Tensor = self._convolve(x, self.weight[:, 0], self.bias, pages, step, self.spec)
        return out


def _cut(name: str, parts: Sequence[tuple[int, int]], inner: tuple[int, ...]) -> list[Part]:
    shape = (sum(channels for channels, _ in parts), *inner)
    made, first = [], 0
    for channels, copies in parts:
        made.append(Part(name, shape, 0, first, channels, copies))
        first += channels
    return made
