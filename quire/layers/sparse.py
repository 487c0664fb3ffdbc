"""What Qwen's configs say of experts: which layers have them, and the plan where one more expert serves all tokens."""

from typing import Protocol

from quire.layers.moe import MoePlan, SharedPlan


class Sparseness(Protocol):
    """Fields of config.json that choose layers."""

    @property
    def decoder_sparse_step(self) -> int:
        """Every so many layers one has experts."""
        ...

    @property
    def mlp_only_layers(self) -> list[int] | None:
        """Layers that have none in any case."""
        ...


class SharedSizes(Protocol):
    """Fields of config.json that size experts."""

    @property
    def hidden_size(self) -> int:
        """Values of a token."""
        ...

    @property
    def moe_intermediate_size(self) -> int:
        """Values between an expert's products."""
        ...

    @property
    def shared_expert_intermediate_size(self) -> int:
        """The same of the expert that serves all tokens."""
        ...

    @property
    def num_experts(self) -> int:
        """How many there are to choose from."""
        ...

    @property
    def num_experts_per_tok(self) -> int:
        """How many a token chooses."""
        ...


def is_sparse(c: Sparseness, index: int) -> bool:
    """Whether layer `index` has experts."""
    return index not in (c.mlp_only_layers or []) and (index + 1) % c.decoder_sparse_step == 0


def with_shared(c: SharedSizes, norm: bool) -> MoePlan:
    """Experts chosen by a softmax, beside one for all tokens behind a gate; `norm`: the chosen weights sum to 1."""
    shared = SharedPlan(c.shared_expert_intermediate_size, "shared_expert", "shared_expert_gate")
    return MoePlan(c.hidden_size, c.moe_intermediate_size, c.num_experts, c.num_experts_per_tok, norm, shared=shared)
