"""`Build`: everything that a layer must know while it is made.

It carries the place in the checkpoint, the mesh, dtype, device and kernel providers, and collects what layers
declare: the state that they keep and the providers that were chosen. `build / "name"` descends one level of the
checkpoint's names.
"""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.layers.stacked import beside
from quire.layers.state import LayerState, RecurrentState
from quire.loading.quantized import Place, place
from quire.loading.recipe import Part, Recipe, Weight
from quire.messages.state import Retention
from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import Choice, Op, Provider, check_choices, choose
from quire.ops.stored import Bits, StoredSpec, WeightSpec, arranged, offered, storage_for, stored_linear
from quire.parallel.mesh import Mesh
from quire.quantization.checkpoint import ONLINE, Quantized
from quire.quantization.scaled import Form, Scaled
from quire.quantization.scheme import Matrix
from quire.quantization.stacked import Stacked
from quire.quantization.storage import Storage

INT4_GROUP = 128
"""Inputs that share a scale."""
EXPERTS = {"int8": Form("int8", None), "int4": Form("uint4b8", INT4_GROUP)}
"""What experts become while they load, where other matrices take the form of `Canonical`."""
COMPOSED = "composed"
"""What serves a fused op that no provider has as one: the small ops, each by its own provider."""


@dataclass(frozen=True)
class Build:
    """What a layer is made from.

    Attributes:
        mesh: the ranks that layers are cut over.
        dtype, device: of weights and activations.
        quantization: what matrices of full precision become while they load: "int8", "int4" or a name in ONLINE.
        checkpoint: the quantized matrices of the checkpoint; None is one of full precision.
        kv_dtype: of keys and values in pages; None is `dtype`.
        providers: kernel folders to try, best first; they are imported already. The reference is implied.
        max_model_len: positions that will occur; None takes the model's own context length.
        deterministic: only providers serve whose results do not depend on the batch.
        path: where in the checkpoint's names the layer stands.
        states: what layers keep between steps, in layer order.
        choices: which provider serves each op, in order of building.
        tables: rotary tables by what determines them; layers share them.
    """

    mesh: Mesh
    dtype: torch.dtype
    device: torch.device
    providers: Sequence[str] = ()
    max_model_len: int | None = None
    deterministic: bool = False
    quantization: str | None = None
    checkpoint: Quantized | None = None
    kv_dtype: torch.dtype | None = None
    path: str = ""
    states: list[LayerState | RecurrentState] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    tables: dict[object, Tensor] = field(default_factory=dict)

    def __truediv__(self, name: str) -> "Build":
        return replace(self, path=self.name(name))

    def imagined(self) -> "Build":
        """The like for a model without memory, of which only names and shapes are wanted."""
        plain = replace(self, device=torch.device("meta"), providers=(), max_model_len=1, deterministic=False)
        return replace(plain, states=[], choices=[], tables={})

    def name(self, name: str) -> str:
        """The checkpoint's full name of `name` at this level."""
        return f"{self.path}.{name}" if self.path else name

    def weight(
        self,
        *parts: Part,
        center: float = 0.0,
        again: tuple[str, ...] = (),
        fused: tuple[Part, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> Weight:
        """A parameter stacked from `parts`, whose names are relative to this level; its values come later.

        `center`, `again` (full names) and `fused` (relative like `parts`) are the recipe's; `dtype` is the model's
        unless given. Raises CheckpointError where it does not fit in memory.
        """
        recipe = Recipe(self._named(parts), center, again, self._named(fused))
        shape = recipe.shape(self.mesh.rank, self.mesh.size)
        kind = dtype or self.dtype
        return Weight(self._taken(recipe, lambda: torch.empty(shape, dtype=kind, device=self.device)), recipe)

    def matrix(self, *parts: Part, again: tuple[str, ...] = (), head: bool = False) -> Weight:
        """The like for a matrix that activations are multiplied with (see `product`), stored as its kernel wants it.

        `head` says that it makes logits: it is never quantized to less than 8 bits.
        """
        recipe = Recipe(self._named(parts), again=again)
        found = self._quantized(recipe, self.providers)
        if found is not None:
            return found
        outputs, inputs = recipe.shape(self.mesh.rank, self.mesh.size)
        storage = self._storage(outputs, inputs, head)
        if storage is None:
            return self.weight(*parts, again=again)
        return Weight(self._taken(recipe, storage.allocate), recipe, storage)

    def table(self, part: Part) -> Weight:
        """The like for a matrix whose rows are looked up: quantized only where the checkpoint is."""
        found = self._quantized(Recipe(self._named([part])), ())
        return self.weight(part) if found is None else found

    def experts(self, count: int, parts: Sequence[Part], fused: Sequence[Part] = ()) -> Weight:
        """The like for `count` matrices of experts, one after another; `fused` as of `weight`. See `ops/moe.py`."""
        recipe = Recipe(self._named(parts), fused=self._named(fused))
        found = self._quantized(recipe, self.providers, count)
        if found is not None:
            return found
        outputs, inputs = recipe.shape(self.mesh.rank, self.mesh.size)
        if self.quantization not in ONLINE:
            packed = offered(self._wanted(outputs, inputs, self._bits(False), count), self.providers)
            if packed is not None:
                return Weight(self._taken(recipe, packed.allocate), recipe, packed)
        if self.quantization is None:
            return self.weight(*parts, fused=tuple(fused))
        form = EXPERTS.get(self.quantization) or ONLINE[self.quantization]
        scaled = Scaled.of(outputs, inputs, form, self.dtype_name, str(self.device))
        storage = arranged(scaled, self.providers) or scaled
        return Weight(self._taken(recipe, storage.allocate), recipe, storage)

    def holds(self, name: str) -> bool:
        """Whether the checkpoint is quantized and has a tensor `name` at this level."""
        return self.checkpoint is not None and self.name(name) in self.checkpoint.source.entries

    def quantizes(self, part: Part) -> bool:
        """Whether the checkpoint holds this matrix quantized, whatever config.json says of it."""
        if self.checkpoint is None:
            return False
        module = self.name(part.name).removesuffix(".weight")
        return self.checkpoint.scheme(Matrix(module, part.shape[0], part.shape[1])) is not None

    def _quantized(self, recipe: Recipe, providers: Sequence[str], matrices: int = 1) -> Weight | None:
        """The weight of a recipe that the checkpoint holds quantized, `matrices` of equal size."""
        if self.checkpoint is None:
            return None
        recipe = recipe.fitting(self.checkpoint.source.entries)
        where = Place(self.mesh.rank, self.mesh.size, self.dtype_name, str(self.device), providers, matrices)
        placed = place(recipe.parts, self.checkpoint, where)
        return None if placed is None else Weight(self._taken(recipe, placed[0].allocate), recipe, *placed)

    def _storage(self, outputs: int, inputs: int, head: bool) -> Storage | None:
        """How a matrix of full precision is stored."""
        dtype, device, online = self.dtype_name, str(self.device), self.quantization
        if online is not None and online in ONLINE:
            form = Scaled.of(outputs, inputs, ONLINE["fp8" if head else online], dtype, device)
            return arranged(form, self.providers) or form
        return storage_for(self._wanted(outputs, inputs, self._bits(head)), self.providers)

    def _bits(self, head: bool) -> Bits | None:
        """Of a matrix of full precision while it loads, where its form is not one with scales."""
        return None if self.quantization is None else 8 if head or self.quantization == "int8" else 4

    def _wanted(self, outputs: int, inputs: int, bits: Bits | None, matrices: int = 1) -> WeightSpec:
        return WeightSpec(outputs, inputs, bits, INT4_GROUP, self.dtype_name, str(self.device), matrices)

    def product(self, weight: Weight, bias: bool) -> tuple[LinearSpec | StoredSpec, Callable[..., Any]]:
        """The op that multiplies with a `matrix`, called with (x, weight, bias or None, spec): `(spec, function)`."""
        spec: LinearSpec | StoredSpec
        if weight.stored is None:
            spec = LinearSpec(weight.columns, weight.rows, bias, self.dtype_name, str(self.device))
            return spec, self.op(linear, spec)
        spec = StoredSpec(weight.stored, bias, self.dtype_name, str(self.device))
        if isinstance(weight.stored, Stacked):
            return spec, beside(weight.stored, spec, self.op)
        return spec, self.op(stored_linear, spec)

    def _named(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(replace(part, name=self.name(part.name)) for part in parts)

    def _taken(self, recipe: Recipe, allocate: Callable[[], Tensor]) -> Tensor:
        try:
            return allocate()
        except (RuntimeError, OSError, MemoryError) as error:
            if not _says_no_memory(error):
                raise
            shape = recipe.shape(self.mesh.rank, self.mesh.size)
            raise CheckpointError(
                f"{recipe.parts[0].name}: {shape} of {self.quantization or self.dtype_name} does not fit in the memory "
                f"of {self.device}; use a smaller model, a shorter dtype or more tensor-parallel ranks"
            ) from error

    def state(self, kv_heads: int, head_dim: int, retention: Retention, value_dim: int | None = None) -> LayerState:
        """A state for `kv_heads` heads of this rank, entered into the list of states.

        The second pool has `value_dim` values a head, `head_dim` unless given.
        """
        dims = head_dim, value_dim or head_dim
        made = LayerState(kv_heads, dims, retention, self.kv_dtype or self.dtype, self.device)
        self.states.append(made)
        return made

    def recurrent(self, conv: tuple[int, int], state: tuple[int, ...]) -> RecurrentState:
        """A recurrent state of these shapes on this rank, entered into the list of states. See `RecurrentState`."""
        made = RecurrentState(conv, state, self.dtype, self.device)
        self.states.append(made)
        return made

    def op(self, op: Op, spec: Any, instead: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The function that serves `op` for `spec`, chosen here and never again; called with arguments by position.

        `instead` takes the reference's place: for a fused op, the same out of the small ops that were chosen. Raises
        ConfigError where results must not depend on the batch and those of all providers do.
        """
        last = None if instead is None else Provider(COMPOSED, instead, lambda spec: None, batch_invariant=True)
        choice = self.choose(op, spec, last)
        check_choices([choice], self.deterministic)
        self.choices.append(choice)
        return choice.function

    def choose(self, op: Op, spec: Any, last: Provider | None = None) -> Choice:
        """Who would serve `op`. See `registry.choose`."""
        return choose(op, spec, self.providers, last, self.deterministic)

    def provider_names(self) -> dict[str, str]:
        """Op to the provider that serves it (several where layers differ)."""
        names: dict[str, list[str]] = {}
        for choice in self.choices:
            found = names.setdefault(choice.op, [])
            if choice.provider not in found:
                found.append(choice.provider)
        return {op: ", ".join(found) for op, found in names.items()}

    @property
    def dtype_name(self) -> str:
        """The dtype as specs spell it."""
        return str(self.dtype).removeprefix("torch.")


def _says_no_memory(error: Exception) -> bool:
    """Whether memory is what was missing. Of torch's own errors those of GPUs alone have a type that says so."""
    words = ("DefaultCPUAllocator: can't allocate memory", "Storage size calculation overflowed")
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(each in str(error) for each in words)
    )
