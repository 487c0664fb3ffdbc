"""Muon for the hidden matrices, AdamW for the embedding and the norms, under one learning rate.

Muon orthogonalises the momentum of a matrix by a Newton-Schulz iteration; scaled to the root mean square of an AdamW
update, both halves share the learning rate and the weight decay. Matrices of one shape are orthogonalised in one
batch, because a small network is bound by launches, not by arithmetic.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2  # root mean square of a typical AdamW update, before the learning rate


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(parameters, max(shape) ** 0.5 * _ADAMW_RMS, group)

    def _update(self, parameters: list[nn.Parameter], scale: float, group: dict[str, float]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = orthogonalise(torch.stack(looked_ahead)).to(parameters[0].dtype).unbind()
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix of the batch close to one."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def make_optimisers(network: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Give the hidden matrices to Muon and the rest to AdamW; the norms' gains do not decay."""
    named = list(network.named_parameters())
    embeddings = [p for n, p in named if "embed" in n]
    gains = [p for _, p in named if p.dim() < 2]
    matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
    groups = [
        {"params": embeddings, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=embeddings[0].is_cuda)
    return [Muon(matrices, lr, weight_decay), adamw]
