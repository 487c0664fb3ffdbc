"""What some families do to queries, keys and values between the projection and attention, beyond norms of single heads.

All of it happens in the fused row [queries; keys; values] of this rank, before anything is rotated or written to pages.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire.layers.build import Build
from quire.loading.recipe import Part


@dataclass(frozen=True, slots=True)
class LogScaling:
    """Queries are multiplied by 1 + beta * log(1 + (position + ahead) // original), so that scores keep their sharpness
    far out (Llama 4, Ministral 3).
    """

    beta: float
    original: int
    ahead: int = 0

    def at(self, positions: Tensor) -> Tensor:
        """(tokens,) positions to (tokens, 1) float32 factors."""
        return (1 + self.beta * torch.log1p(((positions + self.ahead) // self.original).float()))[:, None]


class WideNorms(nn.Module):
    """RMS norms over all query heads together and over all key heads together, whichever rank holds them (OLMo 2)."""

    def __init__(self, b: Build, heads: tuple[int, int], copies: int, head_dim: int, eps: float) -> None:
        """`heads`: of queries and of keys, over all ranks; neighbouring ranks hold `copies` of the same key head."""
        super().__init__()
        self.mesh, self.eps = b.mesh, eps
        widths = [n * head_dim for n in heads]
        self.q_weight = (b / "q_norm").weight(Part("weight", (widths[0],), 0), center=1.0)
        self.k_weight = (b / "k_norm").weight(Part("weight", (widths[1],), 0, copies=copies), center=1.0)
        # Over the ranks, keys that several hold count as often.
        self.counts = widths[0], widths[1] * copies

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, heads * head_dim) each."""
        wide = q.float(), k.float()
        squares = self.mesh.all_reduce(torch.stack([x.square().sum(-1) for x in wide]))
        scales = [torch.rsqrt(s / n + self.eps)[:, None] for s, n in zip(squares, self.counts, strict=True)]
        weights = self.q_weight.float(), self.k_weight.float()
        normed = [(x * s * w).to(q.dtype) for x, s, w in zip(wide, scales, weights, strict=True)]
        return normed[0], normed[1]


class HeadLayerNorms(nn.Module):
    """Layer norms of every query head and every key head, each head with weights of its own (Command R+)."""

    def __init__(
        self, b: Build, heads: tuple[int, int], copies: int, halves: tuple[int, int] | None, shape: tuple[int, float]
    ) -> None:
        """`heads` and `copies` as of `WideNorms`; `halves` as of `Part`; `shape`: head_dim and epsilon."""
        super().__init__()
        self.head_dim, self.eps = shape
        self.q_weight, self.k_weight = (
            (b / name).weight(
                Part("weight", (n * self.head_dim,), 0, copies=count, stacked=True, halves=halves), center=1.0
            )
            for name, n, count in zip(("q_norm", "k_norm"), heads, (1, copies), strict=True)
        )

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, heads * head_dim) each."""
        return self._normed(q, self.q_weight), self._normed(k, self.k_weight)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        heads = x.float().view(len(x), -1, self.head_dim)
        centred = heads - heads.mean(-1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        normed: Tensor = scaled.flatten(-2) * weight.float()
        return normed.to(x.dtype)


class HeadChanges(nn.Module):
    """Norms, then bounds, then growth: of a row's queries, keys and values, of so many `widths`."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        bound: float | None,
        norms: WideNorms | HeadLayerNorms | None,
        growth: LogScaling | None,
    ) -> None:
        super().__init__()
        self.widths, self.bound, self.growth = list(widths), bound, growth
        self.norms = norms

    def forward(self, qkv: Tensor, positions: Tensor) -> Tensor:
        """(tokens, widths) to the same."""
        if self.norms is not None:
            q, k, v = torch.split(qkv, self.widths, dim=-1)
            qkv = torch.cat([*self.norms.forward(q, k), v], dim=-1)
        if self.bound is not None:
            qkv = qkv.clamp(-self.bound, self.bound)
        if self.growth is None:
            return qkv
        q, rest = qkv.tensor_split([self.widths[0]], dim=-1)
        return torch.cat([(q.float() * self.growth.at(positions)).to(qkv.dtype), rest], dim=-1)
