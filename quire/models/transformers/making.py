"""A model as transformers makes it, before it has values: which class it is of, and in which dtypes."""

import inspect
from typing import Any

import torch
import transformers
from transformers import initialization
from transformers.core_model_loading import build_glob_alternation
from transformers.models.auto.auto_factory import _get_model_class

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.layers.adopted import without_memory
from quire.layers.build import Build


def _wanted(facts: ModelFacts) -> tuple[Any, Any]:
    """The library's class that makes models for the task, and its table of them. Raises CheckpointError."""
    head = None if facts.pooling is None else facts.pooling.head
    if head == "reward":
        raise CheckpointError(f"{facts.path}: transformers has no reward models")
    return {
        None: (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
        "none": (transformers.AutoModel, transformers.MODEL_MAPPING),
        "sequence": (
            transformers.AutoModelForSequenceClassification,
            transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        ),
        "token": (transformers.AutoModelForTokenClassification, transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    }[head]


def may_attend(facts: ModelFacts, config: Any) -> bool:
    """Whether the library's model of a checkpoint says that it calls whatever function is named as its attention."""
    _, mapping = _wanted(facts)
    return type(config) not in mapping or bool(_get_model_class(config, mapping)._can_set_attn_implementation())


def make_model(facts: ModelFacts, b: Build, config: Any, attention: str, trust_remote_code: bool) -> Any:
    """The model on the device of `b`, its parameters without memory.

    Args:
        attention: name of the function that computes it.

    Raises CheckpointError where the library has none for the task.
    """
    auto, mapping = _wanted(facts)
    given: dict[str, Any] = {"dtype": b.dtype, "attn_implementation": attention}
    if type(config) in mapping:
        kind = _get_model_class(config, mapping)
        if kind._is_stateful:
            raise CheckpointError(f"{facts.path}: transformers' {kind.__name__} keeps recurrent state, not only pages")
        bare = facts.pooling is not None and facts.pooling.head == "none"
        if bare and "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
            given["add_pooling_layer"] = False
    elif not trust_remote_code:
        raise CheckpointError(f"{facts.path}: transformers has no {auto.__name__} for {facts.model_type}")
    if config.get_text_config().pad_token_id is None:
        # Heads that score ask for one and never meet it.
        config.get_text_config().pad_token_id = 0
    # Keys and values lie in pages; a cache of the library's would hold those of all layers until the step ends.
    config.get_text_config().use_cache = False
    try:
        with torch.device(b.device), initialization.no_init_weights(), without_memory():
            model = auto.from_config(config, trust_remote_code=trust_remote_code, **given)
    except Exception as error:
        raise CheckpointError(f"{facts.path}: transformers cannot make {facts.model_type}: {error!r}") from error
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
