"""Modules that were not written for this engine: their parameters, products and experts made ours.

Parameters get memory that recipes fill; linear modules get our kernels and quantization, their outputs cut over the
ranks; experts are dealt out among the ranks. All else is computed by every rank, so a module may do between products
whatever it likes. Knows no library of models: `models/transformers` does.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from quire.base.errors import CheckpointError
from quire.layers.adopted_experts import AdoptedExperts, ShardedExperts
from quire.layers.build import Build
from quire.layers.linear import Linear
from quire.loading.recipe import Part, Recipe, Weight
from quire.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a parameter lie in the checkpoint.

    Attributes:
        names: of the tensors, stacked along the first dimension; neighbouring entries of one parameter that has a
            dimension for experts follow each other.
        rows: of each; empty where all have as many.
        transposed: whether the checkpoint holds the matrix the other way round.
        share: (which, of how many): only this of so many equal shares of the only tensor's rows.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of the checkpoint.

    Attributes:
        origins: by the name of the parameter; without one it has the same name in the checkpoint.
        unused: tensors of the checkpoint that nobody needs.
    """

    origins: Mapping[str, Origin] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def parts(self, name: str, tensor: Tensor) -> tuple[Part, ...]:
        """What fills `tensor`, whole. Raises CheckpointError for a shape that the loader cannot fill."""
        origin, shape = self.origins.get(name, Origin((name,))), tuple(tensor.shape) or (1,)
        if len(shape) == 3:
            shape = (shape[0] * shape[1], shape[2])
        rows = origin.rows or (shape[0] // len(origin.names),) * len(origin.names)
        if len(shape) not in (1, 2) or not tensor.is_contiguous() or sum(rows) != shape[0]:
            raise CheckpointError(
                f"{name} has the shape {tuple(tensor.shape)}, which cannot be filled from {origin.names}"
            )
        which, shares = origin.share
        whole = Part("", (), transposed=origin.transposed, stacked=tensor.dim() == 3 and len(origin.names) == 1)
        return tuple(
            replace(whole, name=part, shape=(count * shares, *shape[1:]), first=which * count, rows=count)
            for part, count in zip(origin.names, rows, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Experts:
    """Names of modules of experts, called as `AdoptedExperts`, whose parameters have a first dimension for experts.

    Attributes:
        usual: those that are what `AdoptedExperts` is, with the parameters `gate_up_proj` and `down_proj`.
        others: those that are not; the attribute `num_experts` says how many there are.
    """

    usual: Collection[str] = ()
    others: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor and all the names under which modules hold it; the first is the one that the checkpoint has."""

    tensor: Tensor
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the tensor in the checkpoint, or what it was renamed to."""
        return self.names[0]


class AdoptedLinear(nn.Module):
    """A linear module of any shape of inputs, its outputs cut over the ranks and gathered.

    Args:
        outputs: over all ranks.
        cut: whether `weight` holds this rank's outputs alone.

    Attributes:
        share: this rank's outputs.
    """

    def __init__(self, b: Build, weight: Weight, bias: Weight | None, outputs: int, cut: bool) -> None:
        super().__init__()
        self.share = Linear(b, weight, bias)
        self.in_features, self.out_features = weight.columns, outputs
        self._mesh = b.mesh if cut else Mesh()

    @property
    def weight(self) -> Tensor:
        """All values, (outputs, inputs), for code that reads them instead of calling the module."""
        own = self.share.weight
        rows: Tensor = own.data
        if own.stored is not None:
            rows = own.stored.rows(rows, torch.arange(own.stored.outputs, device=rows.device))
        return self._mesh.all_gather(rows, dim=0)[: self.out_features]

    @property
    def bias(self) -> Tensor | None:
        """All values, (outputs,), for the same code."""
        own = self.share.bias
        return None if own is None else self._mesh.all_gather(own.data)[: self.out_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), all of them on every rank."""
        made = self._mesh.all_gather(self.share.forward(x.reshape(-1, self.in_features).contiguous()))
        return made[:, : self.out_features].reshape(*x.shape[:-1], self.out_features)


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters that modules are given meanwhile have no memory, which `adopt` sees to."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or not parameter.is_floating_point():
            return parameter
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    # What torch says of the type leaves out that a result takes the place of the parameter.
    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class Heads:
    """Linear modules behind the layers.

    Attributes:
        logits: those that make logits.
        scores: those that make scores of labels: whole on every rank, since the first computes them alone.
    """

    logits: Collection[nn.Module] = ()
    scores: Collection[nn.Module] = ()


def adopt(
    module: nn.Module, b: Build, source: Source, heads: Heads = Heads(), experts: Experts = Experts()
) -> list[Weight]:
    """A `Weight` for each parameter and lasting buffer of `module`, which the loader fills.

    Args:
        b: at the top of the checkpoint's names.
        heads: modules behind the layers.
        experts: modules of experts.

    Raises CheckpointError for a parameter whose shape the loader cannot fill, or that does not fit in memory;
    ConfigError where experts cannot be dealt out.
    """
    places = _places(module, source)
    found = _adopt_linears(module, b, source, places, heads)
    found += _adopt_experts(module, b, source, places, experts.usual)
    dealt = {name: _ExpertShard(module.get_submodule(name), b) for name in experts.others if b.mesh.size > 1}
    for place in places.values():
        holder = place.name.rpartition(".")[0]
        parts = source.parts(place.name, place.tensor)
        weight = _weight(b, place, dealt[holder].parts(parts) if holder in dealt else parts, source)
        shape = (dealt[holder].count, *place.tensor.shape[1:]) if holder in dealt else place.tensor.shape
        _put(module, place, weight.data.view(shape))
        found.append(weight)
    for name, deal in dealt.items():
        module.set_submodule(name, deal.settled())
    if found:
        found[0].recipe = replace(found[0].recipe, again=(*found[0].recipe.again, *source.unused))
    return found


def _places(module: nn.Module, source: Source) -> dict[int, Place]:
    """Parameters and buffers that checkpoints hold, by their identity."""
    names: dict[int, list[str]] = {}
    held = {name: x for name, x in module.state_dict(keep_vars=True).items() if x.is_floating_point()}
    for name, tensor in held.items():
        names.setdefault(id(tensor), []).append(name)
    # `sorted` keeps the order of those that are alike.
    ordered = {key: tuple(sorted(each, key=lambda name: name not in source.origins)) for key, each in names.items()}
    return {key: Place(held[each[0]], each) for key, each in ordered.items()}


def _adopt_linears(module: nn.Module, b: Build, source: Source, places: dict[int, Place], heads: Heads) -> list[Weight]:
    """Put ours in place of linear modules whose weights are theirs alone; what they hold is taken from `places`."""
    found: list[Weight] = []
    for name, linear in list(module.named_modules()):
        if type(linear) is not nn.Linear or linear.weight.dtype is not b.dtype:
            continue
        if len(places[id(linear.weight)].names) > 1:
            continue
        outputs, cut = linear.out_features, b.mesh.size > 1 and linear not in heads.scores
        parts = source.parts(f"{name}.weight", linear.weight)
        cut = cut and len(parts) == 1
        weight = b.matrix(*_cut(parts, b.mesh, cut), head=linear in heads.logits)
        bias = None
        if linear.bias is not None:
            bias = b.weight(*_cut(source.parts(f"{name}.bias", linear.bias), b.mesh, cut))
        for tensor in (linear.weight, linear.bias):
            places.pop(id(tensor), None)
        module.set_submodule(name, AdoptedLinear(b, weight, bias, outputs, cut))
        found += [weight] if bias is None else [weight, bias]
    return found


def _adopt_experts(
    module: nn.Module, b: Build, source: Source, places: dict[int, Place], names: Collection[str]
) -> list[Weight]:
    """Put ours in place of the usual experts; what they hold is taken from `places`."""
    found: list[Weight] = []
    for name in names:
        held = {each: module.get_submodule(name).get_parameter(each) for each in ("gate_up_proj", "down_proj")}
        first, second = (source.parts(f"{name}.{each}", tensor) for each, tensor in held.items())
        made = AdoptedExperts(b, first, second, tuple(held["gate_up_proj"].shape))
        for tensor in held.values():
            places.pop(id(tensor))
        module.set_submodule(name, made)
        found += made.weights
    return found


def _cut(parts: tuple[Part, ...], mesh: Mesh, cut: bool) -> tuple[Part, ...]:
    """This rank's rows of the only part."""
    if not cut:
        return parts
    rows = parts[0].rows or parts[0].shape[0]
    return (replace(parts[0], cut=0, pad=mesh.padded(rows) - rows),)


def _weight(b: Build, place: Place, parts: Iterable[Part], source: Source) -> Weight:
    """The weight of a tensor: fresh memory for a parameter, the same memory for a buffer."""
    parts, name, tensor = tuple(parts), place.name, place.tensor
    center = 1.0 if tensor.dim() == 1 and "norm" in name.lower() and name.endswith("weight") else 0.0
    again = tuple(each for each in place.names if each not in source.origins.get(name, Origin((name,))).names)
    if tensor.is_meta:
        return b.weight(*parts, center=center, again=again, dtype=tensor.dtype)
    return Weight(tensor.data.view(tensor.shape or (1,)), Recipe(parts, center, again))


def _put(module: nn.Module, place: Place, values: Tensor) -> None:
    """Make `values` what all holders of a tensor hold that had no memory."""
    if not place.tensor.is_meta:
        return
    parameter = nn.Parameter(values, requires_grad=False)
    for name in place.names:
        holder, _, own = name.rpartition(".")
        at = module.get_submodule(holder)
        if own in dict(at.named_buffers(recurse=False)):
            at.register_buffer(own, values)
        else:
            at.register_parameter(own, parameter)


class _ExpertShard:
    """How the experts of one module are dealt out: each rank gets as many, in order.

    Attributes:
        count: of this rank's.
    """

    def __init__(self, experts: nn.Module, b: Build) -> None:
        self._experts, self._mesh, self._all = experts, b.mesh, int(vars(experts)["num_experts"])
        self.count = b.mesh.split(self._all, "num_experts")

    def parts(self, parts: tuple[Part, ...]) -> Iterator[Part]:
        """Of a parameter of all experts, what holds this rank's."""
        if len(parts) == 1:
            yield replace(parts[0], cut=0)
            return
        each = len(parts) // self._all
        for index, part in enumerate(parts):
            mine = index // each // self.count == self._mesh.rank
            yield part if mine else replace(part, rows=0)

    def settled(self) -> ShardedExperts:
        """The module, now that it holds its share."""
        vars(self._experts)["num_experts"] = self.count
        return ShardedExperts(self._experts, self._all, self._mesh)
