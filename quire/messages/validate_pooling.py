"""The validator's other half: token ids and `PoolingParams` become a `Request`, or a `RequestError` says why not.

As in `validate.py`, `LLM` and the server both come through here.
"""

from collections.abc import Sequence

from quire.base.errors import RequestError
from quire.checkpoint.pooling import PoolerFacts
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.pooling import TOKEN_TASKS, Pooling, PoolingParams, PoolingTask
from quire.messages.pooling_outputs import Side
from quire.messages.request import USUAL, Request, Scheduling
from quire.messages.validate import check_int, check_scheduling, check_token_ids, tokens_kept
from quire.messages.wire import EngineFacts

SAMPLING = SamplingParams(max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
"""What a request that samples nothing has in the place of sampling parameters."""


def check_task(task: str, facts: EngineFacts) -> None:
    """Raise the RequestError for a task that the model does not serve."""
    if task not in facts.tasks:
        raise _unserved(task, facts)


def _unserved(task: str, facts: EngineFacts) -> RequestError:
    served = ", ".join(facts.tasks)
    return RequestError(f"This model does not serve the task {task}; it serves: {served}.", "model", "unsupported_task")


def make_pooling_request(
    id: str,
    token_ids: Sequence[int],
    params: PoolingParams,
    facts: EngineFacts,
    *,
    second: int | None = None,
    scheduling: Scheduling = USUAL,
) -> Request:
    """Check everything a sender may choose and make the engine's request of it.

    Args:
        id: made by the front end, unique in the engine.
        token_ids: the text.
        params: as the sender gave them; with a task.
        facts: of the engine.
        second: where the second of two texts begins, if there are two.
        scheduling: how the request stands among others.

    Raises:
        RequestError: with the field at fault in `param`; code `context_length_exceeded` if the text is too long.
    """
    pooler = facts.pooler
    task = _task(params, facts)
    check_scheduling(scheduling)
    assert pooler is not None, "an engine that serves such a task has a pooler"
    for name, flag in (("normalize", params.normalize), ("use_activation", params.use_activation)):
        if flag is not None and type(flag) is not bool:
            raise RequestError(f"{name} must be true or false.", name, "invalid_type")
    prompt = _prompt(token_ids, params, facts)
    raw = params.use_activation is False
    pooling = Pooling(
        task=task,
        dimensions=_dimensions(params, task, pooler),
        normalize=pooler.normalize if params.normalize is None else params.normalize,
        activation="none" if raw else pooler.activation,
        every_token=pooler.method != "last" or task in TOKEN_TASKS,
        second=len(prompt) if second is None else min(second, len(prompt)),
        seen=len(prompt) if pooler.late is None else pooler.late.seen_of(prompt),
    )
    return Request(
        id=id,
        token_ids=prompt,
        params=SAMPLING,
        pooling=pooling,
        priority=scheduling.priority,
        cache_salt=scheduling.cache_salt,
        owner=scheduling.owner,
    )


def _task(params: PoolingParams, facts: EngineFacts) -> PoolingTask:
    if facts.pooler is None:
        raise _unserved(params.task or "encode", facts)
    if params.task is None:
        raise RequestError(f"Choose a task: {', '.join(facts.tasks)}.", "task")
    check_task(params.task, facts)
    return params.task


def _dimensions(params: PoolingParams, task: PoolingTask, pooler: PoolerFacts) -> int:
    wanted = params.dimensions
    if wanted is None:
        return pooler.dimension
    if pooler.head != "none":
        raise RequestError(f"dimensions have no meaning for the task {task}; leave them out.", "dimensions")
    check_int("dimensions", wanted, 1, pooler.dimension)
    if pooler.dimensions and wanted not in (*pooler.dimensions, pooler.dimension):
        raise RequestError(
            f"dimensions must be one of {', '.join(map(str, pooler.dimensions))}: this model was trained for these.",
            "dimensions",
        )
    return wanted


def _prompt(token_ids: Sequence[int], params: PoolingParams, facts: EngineFacts) -> list[int]:
    """The text, cut at the right if the sender asked for it."""
    if not isinstance(token_ids, list | tuple):
        raise RequestError("input must be text or a list of token ids.", "input", "invalid_type")
    if not token_ids:
        raise RequestError("input must hold at least one token.", "input", "empty_prompt")
    check_token_ids("input", token_ids, facts.vocab_size)
    if (kept := kept_tokens(params, facts)) is not None:
        return list(token_ids[:kept])
    if len(token_ids) > facts.max_prompt_len:
        raise RequestError(
            f"This model reads at most {facts.max_prompt_len} tokens, and this input has {len(token_ids)}. "
            "Shorten it, or send truncate_prompt_tokens: -1.",
            "input",
            "context_length_exceeded",
        )
    return list(token_ids)


def kept_tokens(params: PoolingParams, facts: EngineFacts) -> int | None:
    """How many of the first tokens truncate_prompt_tokens keeps; None keeps all. Raises RequestError."""
    return tokens_kept(params.truncate_prompt_tokens, facts.max_prompt_len, facts.max_prompt_len)


def read_sides(
    sides: Sequence[Side], ids: Sequence[list[int]], params: PoolingParams, facts: EngineFacts
) -> list[list[int]]:
    """The tokens of texts that are compared, as the model reads them, given those that the tokenizer made."""
    late, kept = None if facts.pooler is None else facts.pooler.late, kept_tokens(params, facts)
    if late is None:
        return list(ids)
    return [late.read(each, side.query, kept, facts.max_prompt_len) for side, each in zip(sides, ids, strict=True)]
