"""Any decoder or encoder that the library transformers defines and no file of this folder: its modules, our attention
over pages, our scheduler, our loader.

The library calls a function of ours in place of attention. A first run without weights tells what each call is like and
what cannot be served: state of another kind than keys and values, scores that are added to, masks that neither a window
nor a chunk explains. This is the only file that imports transformers, and the only one that may run code of a
checkpoint (`trust_remote_code`).
"""

import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.checkpoint.entries import read_entries
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry
from quire.checkpoint.pooling import position_offset
from quire.checkpoint.read import typed
from quire.checkpoint.rope import rope_facts, rope_kind
from quire.layers.adopted import Origin, adopt
from quire.layers.adopted_attention import Seam
from quire.layers.build import Build
from quire.layers.decoder import Count, Depth
from quire.ops.registry import Choice
from quire.ops.step import StepInputs

try:
    import transformers
    from transformers import initialization
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        Concatenate,
        MergeModulelist,
        Transpose,
        WeightConverter,
        WeightRenaming,
        build_glob_alternation,
        rename_source_key,
    )
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.utils import ModelOutput
except ImportError as missing:
    raise CheckpointError(
        f"models without a file of quire's need the library transformers ({missing}): pip install 'quire[transformers]'"
    ) from None

PROBE = 4
"""Tokens of the first run."""
KEPT = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose state is keys and values."""
WINDOWS = ("sliding_window", "local_attention")
"""Fields of configs that say how large windows are."""
_numbers = itertools.count()


class Sizes(msgspec.Struct, frozen=True):
    """What every config says; a damaged number is found before memory is taken."""

    hidden_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Count


class Given(nn.Module):
    """Stands in the place of the inner model while a head is computed, and answers what it was given.

    Args:
        kind: of what the inner model returns.
        pooler: of the inner model, if it has one.
    """

    def __init__(self, kind: type[ModelOutput], pooler: nn.Module | None) -> None:
        super().__init__()
        self.kind, self.pooler = kind, pooler
        self.states = torch.empty(0)

    def forward(self, *args: Any, **given: Any) -> ModelOutput:
        """The states, as the inner model would return them."""
        if self.pooler is None:
            return self.kind(last_hidden_state=self.states)
        return self.kind(last_hidden_state=self.states, pooler_output=self.pooler(self.states))


class Adopted(nn.Module):
    """A model of transformers', read step by step.

    Attributes:
        inner: from tokens to hidden states.
        outer: what is around it, with `Given` in its place: the head. The same where there is no head.
        weights: all parameters, in the same memory, as the loader wants them.
    """

    def __init__(self, facts: ModelFacts, b: Build, config: Any, trust_remote_code: bool) -> None:
        super().__init__()
        self._seam = _seam(config)
        self._pooling = facts.pooling
        self._offset = position_offset(facts.config)
        self._probe = torch.arange(PROBE, device=b.device)
        self.outer = _made(facts, b, config, _register(self._seam), trust_remote_code)
        self.weights = nn.ParameterList(adopt(self.outer, *_origins(self.outer, facts)))
        self._place = _place_of_inner(self.outer, facts)
        self.inner: nn.Module = self.outer if self._place is None else self.outer.get_submodule(self._place)
        taken = inspect.signature(self.inner.forward).parameters
        self._takes_kinds = "token_type_ids" in taken
        if "position_ids" not in taken:
            raise CheckpointError(
                f"{facts.path}: {_name(self.inner)} takes no positions, so texts cannot share a batch"
            )
        self._learn(facts, b, config)
        self._checked = False
        if self._place is not None:
            self.given = Given(self._kind, dict(self.inner.named_children()).get("pooler"))
            setattr(self.outer, self._place, self.given)

    def forward(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step: (tokens, hidden)."""
        if not self._checked:
            self._checked = True
            self._check()
        # A mask of four dimensions counts as ready: none is made, and none is looked at.
        given = {"attention_mask": step.token_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)}
        if self._takes_kinds and step.kinds is not None:
            given["token_type_ids"] = step.kinds[None]
        return self._run(step.token_ids, step.positions, step, given)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab)."""
        return self._head(hidden[None])[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """(n, hidden), pooled or of single tokens, to the raw scores of the labels, (n, labels)."""
        return self._head(hidden[:, None]).view(len(hidden), -1)

    def _head(self, states: Tensor) -> Tensor:
        self.given.states = states
        logits: Tensor = self.outer(inputs_embeds=states, use_cache=False).logits
        self.given.states = states[:0]
        return logits

    def _run(self, ids: Tensor, positions: Tensor, step: StepInputs | None, given: dict[str, Tensor]) -> Tensor:
        self._seam.begin(step)
        out = self.inner(input_ids=ids[None], position_ids=positions[None] + self._offset, **given)
        self._kind = type(out)
        hidden: Tensor = out[0][0]
        return hidden

    @torch.inference_mode()
    def _learn(self, facts: ModelFacts, b: Build, config: Any) -> None:
        """The first run: what calls of attention there are. Raises CheckpointError where they cannot be served."""
        name = f"{facts.path}: {_name(self.inner)}"
        try:
            self._run(self._probe, self._probe, None, {})
        except CheckpointError as error:
            raise CheckpointError(f"{name} cannot be served from pages: {error}") from None
        except Exception as error:
            raise CheckpointError(f"{name} cannot be served from pages: {error!r}") from error
        calls, layers = self._seam.calls, int(config.get_text_config().num_hidden_layers)
        if len(calls) < layers:
            raise CheckpointError(
                f"{name} has {layers} layers, of which {len(calls)} attend in a way that can be served; others keep "
                "state of another kind or have attention of their own"
            )
        whole = facts.pooling is not None and facts.pooling.whole
        if any(call.causal is whole for call in calls):
            way = "from left to right" if whole else "both ways"
            raise CheckpointError(f"{name} reads {way}, which is not how its task reads")
        self._seam.settle(b)
        # Its code may wait for the device, so no graph records it.
        b.choices.append(Choice("model", "transformers", self.forward, {}, capturable=False))

    @torch.inference_mode()
    def _check(self) -> None:
        """Hold this way to run the model against the model's own, once weights are there. Raises CheckpointError.

        What one token does to another must go through attention: without that, two texts in one batch are what each is
        alone. And the head must follow from single states.
        """
        places = self._probe
        states = self._run(places, places, None, {})
        both = self._run(torch.cat([places.flip(0), places]), torch.cat([places, places]), None, {})
        if not _alike(states, both[PROBE:]):
            raise CheckpointError(
                f"{_name(self.inner)} brings tokens together by other means than attention and positions"
            )
        if self._place is None:
            return
        setattr(self.outer, self._place, self.inner)
        self._seam.begin(None)
        own = self.outer(input_ids=self._probe[None], position_ids=self._probe[None] + self._offset).logits[0]
        setattr(self.outer, self._place, self.given)
        if self._pooling is None:
            found = self.logits(states)
        elif self._pooling.head == "token":
            found = self.scores(states)
        else:
            pooled = {"cls": states[:1], "last": states[-1:], "mean": states.mean(0, keepdim=True)}
            found = self.scores(pooled[self._pooling.method])[0]
        if not _alike(own, found):
            raise CheckpointError(f"the head of {_name(self.outer)} needs more than the states that it is given")


def _place_of_inner(outer: nn.Module, facts: ModelFacts) -> str | None:
    """Under which name a model with a head holds the one without; None where there is no head."""
    if facts.pooling is not None and facts.pooling.head == "none":
        return None
    places = [name for name, child in outer.named_children() if isinstance(child, transformers.PreTrainedModel)]
    if len(places) != 1:
        raise CheckpointError(f"{facts.path}: {_name(outer)} is not one model with a head")
    return places[0]


def _alike(first: Tensor, second: Tensor) -> bool:
    """Equal but for what rounding does; NaN, which damaged weights give, is not its business."""
    return not bool((first.float() - second.float()).abs().max() > 0.05 * first.float().abs().max())


def _name(model: nn.Module) -> str:
    return f"transformers' {type(model).__name__}"


def _seam(config: Any) -> Seam:
    fields = config.get_text_config().to_dict()
    sizes = [fields[name] for name in WINDOWS if fields.get(name) is not None]
    return Seam(sizes, fields.get("attention_chunk_size"))


def _register(seam: Seam) -> str:
    """Let transformers call `seam`; returns the name by which it does. Nothing there keeps the seam alive."""
    name = f"quire-{next(_numbers)}"
    transformers.AttentionInterface.register(name, _weakly(seam.attend))
    AttentionMaskInterface.register(name, _weakly(seam.mask))
    return name


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    held = weakref.WeakMethod(method)

    def call(*args: Any, **given: Any) -> Any:
        found = held()
        assert found is not None, "a model is called by its owner alone"
        return found(*args, **given)

    return call


def _config(facts: ModelFacts, trust_remote_code: bool) -> Any:
    """The config as transformers wants it. Raises CheckpointError for one that cannot be served."""
    source = f"{facts.path}/config.json"
    fields = {key: value for key, value in facts.config.items() if key not in ("model_type", "auto_map")}
    remote = "auto_map" in facts.config and facts.model_type not in transformers.CONFIG_MAPPING
    if remote and not trust_remote_code:
        raise CheckpointError(
            f"{source}: model_type {facts.model_type!r} is defined by code that came with the checkpoint; read that "
            "code, then allow it with --trust-remote-code"
        )
    if not remote and facts.model_type not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"{source}: model_type {facts.model_type!r} is not known to transformers {transformers.__version__}"
        )
    try:
        if remote:
            return transformers.AutoConfig.from_pretrained(facts.path, trust_remote_code=True)
        return transformers.AutoConfig.for_model(facts.model_type, **fields)
    except Exception as error:
        raise CheckpointError(f"{source}: {error}") from error


def _check(facts: ModelFacts, b: Build, config: Any) -> None:
    """Refuse what this file does not do, before memory is taken."""
    text, problem = config.get_text_config(), None
    sizes = {name: getattr(text, name) for name in Sizes.__struct_fields__}
    typed(sizes, Sizes, f"{facts.path}/config.json")
    kinds = set(text.to_dict().get("layer_types") or ()) - KEPT
    longest = b.max_model_len or facts.context_len
    if b.mesh.size > 1:
        problem = "tensor_parallel_size must be 1"
    elif b.quantization is not None or b.checkpoint is not None:
        problem = "weights cannot be quantized"
    elif kinds:
        problem = f"layers of the kinds {', '.join(sorted(kinds))} keep state that pages do not hold"
    elif (begins := _switches_at(facts)) is not None and longest > begins:
        problem = f"rope would turn with the longest text of a batch: set max_model_len to {begins} at most"
    if problem is not None:
        raise CheckpointError(f"{facts.path}: {facts.model_type} runs through transformers, where {problem}")


def _switches_at(facts: ModelFacts) -> int | None:
    """Beyond how many tokens the rotary embedding changes for all tokens of a text; None where it never does."""
    if rope_kind(facts.config) not in ("dynamic", "longrope"):
        return None
    rope = rope_facts(facts.config)
    return rope.original_context or rope.max_positions


def _made(facts: ModelFacts, b: Build, config: Any, attention: str, trust_remote_code: bool) -> Any:
    """The model on the device of `b`, its values still to come."""
    head = None if facts.pooling is None else facts.pooling.head
    if head == "reward":
        raise CheckpointError(f"{facts.path}: transformers has no reward models")
    auto, mapping = {
        None: (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        "none": (transformers.AutoModel, transformers.MODEL_MAPPING),
        "sequence": (
            transformers.AutoModelForSequenceClassification,
            transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        ),
        "token": (transformers.AutoModelForTokenClassification, transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    }[head]
    given: dict[str, Any] = {"dtype": b.dtype, "attn_implementation": attention}
    if type(config) in mapping:
        kind = mapping[type(config)]
        if kind._is_stateful:
            raise CheckpointError(f"{facts.path}: transformers' {kind.__name__} keeps recurrent state, not only pages")
        if "add_pooling_layer" in inspect.signature(kind.__init__).parameters and head == "none":
            given["add_pooling_layer"] = False
    elif not trust_remote_code:
        raise CheckpointError(f"{facts.path}: transformers has no {auto.__name__} for {facts.model_type}")
    if config.get_text_config().pad_token_id is None:
        # Heads that score ask for one and never meet it.
        config.get_text_config().pad_token_id = 0
    # Keys and values lie in pages; a cache of the library's would hold those of all layers until the step ends.
    config.get_text_config().use_cache = False
    try:
        with torch.device(b.device), initialization.no_init_weights():
            model = auto.from_config(config, trust_remote_code=trust_remote_code, **given)
    except Exception as error:
        raise CheckpointError(
            f"{facts.path}: transformers cannot make {facts.model_type} with attention over pages: {error!r}"
        ) from error
    _widen(model, b.dtype)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _widen(model: Any, dtype: torch.dtype) -> None:
    """Give what the library keeps in float32 that dtype: it sees to that only where it loads weights itself."""
    plan = model._get_dtype_plan(dtype)
    if plan:
        wide = build_glob_alternation(list(plan))[0]
        for name, tensor in model.state_dict(keep_vars=True).items():
            if wide.search(name):
                tensor.data = tensor.data.float()


def _origins(model: Any, facts: ModelFacts) -> tuple[dict[str, Origin], list[str]]:
    """Where parameters lie in the checkpoint, by transformers' own rules for names; and what nobody needs.

    Raises CheckpointError for a rule that is not understood.
    """
    try:
        entries = read_entries(facts)
    except CheckpointError:
        # No weights are there, or damaged ones: the loader will say so where they are wanted.
        return {}, []
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    held = model.state_dict()
    found: dict[str, dict[str, list[TensorEntry]]] = {}
    for name, entry in entries.items():
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        found.setdefault(target, {}).setdefault(pattern or "", []).append(entry)
    origins = {name: _origin(name, parts, converters) for name, parts in found.items() if name in held}
    spare = [
        entry.name for name, parts in found.items() if name not in held for each in parts.values() for entry in each
    ]
    skipped = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    pooled = facts.pooling is not None
    return origins, [name for name in spare if pooled or any(pattern.search(name) for pattern in skipped)]


def _origin(name: str, parts: Mapping[str, list[TensorEntry]], converters: list[WeightConverter]) -> Origin:
    """The origin of one parameter from the tensors that its rules bring together."""
    if "" in parts:
        return Origin((parts[""][0].name,))
    rule = next(rule for rule in converters if next(iter(parts)) in rule.source_patterns)
    # In the order of the rule, and within each in the order of their numbers.
    columns = [sorted(parts[pattern], key=_counted) for pattern in rule.source_patterns if pattern in parts]
    kinds = [type(operation) for operation in rule.operations]
    if kinds == [Transpose]:
        return Origin((columns[0][0].name,), transposed=True)
    merged = kinds in ([MergeModulelist], [MergeModulelist, Concatenate])
    if not merged and kinds != [Concatenate]:
        raise CheckpointError(f"{name}: {' and '.join(kind.__name__ for kind in kinds)} of tensors is not supported")
    rows = [entry for row in zip(*columns, strict=True) for entry in row]
    return Origin(tuple(entry.name for entry in rows), tuple(entry.shape[0] for entry in rows))


def _counted(entry: TensorEntry) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", entry.name)]


def build(facts: ModelFacts, build: Build, trust_remote_code: bool = False) -> Adopted:
    """The model of a checkpoint, as transformers defines it. Raises CheckpointError where it cannot be served."""
    config = _config(facts, trust_remote_code)
    _check(facts, build, config)
    return Adopted(facts, build, config, trust_remote_code)
