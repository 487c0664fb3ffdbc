"""The one validator: token ids and `SamplingParams` become a `Request`, or a `RequestError` says why not.

`LLM` and the server both come through here, so a value refused on one road is refused on all. Types are strict (True is
not 1, "3" is not 3) and nothing is clamped silently but `max_tokens`, which never reaches past the context. It knows
nothing of HTTP, text or devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NoReturn

import msgspec

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.messages.request import USUAL, Request, Scheduling
from quire.messages.structured import check_structured
from quire.messages.wire import EngineFacts

Encode = Callable[[str], list[int]]
"""Text to token ids without special tokens; turns bad_words into ids."""

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 4096
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARS = 4096
MAX_BAD_WORD_TOKENS = 32
"""All rows' words are compared with what rows end in at each step, as far back as the longest of them reaches."""
MAX_BAD_WORDS_CHARS = 1 << 16
"""They are encoded where requests are checked, where other requests wait."""
MAX_SALT_CHARS = 128
INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; `open_low` leaves `low` itself out."""

    low: float
    high: float
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; infinities lie in none, and comparing refuses NaN too."""
        return (self.low < value or (not self.open_low and self.low == value)) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.open_low else 'from'} {self.low:g} to {self.high:g}"


FLOATS = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, open_low=True),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    # Beyond this a float32 logit divided by the penalty may overflow.
    "repetition_penalty": Range(0.01, 100),
}
FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)
LOGIT_BIAS = Range(-100, 100)


@dataclass(frozen=True, slots=True)
class FrontFacts:
    """What requests take from the front end that they come to.

    Attributes:
        eos_token_ids: tokens that end a text of its model.
        encode: text to ids without special tokens, needed for bad_words only.
        in_process: whether the engine is in this process, so that callables may reach it.
    """

    eos_token_ids: Sequence[int] = ()
    encode: Encode | None = None
    in_process: bool = False


def make_request(
    id: str,
    token_ids: Sequence[int],
    params: SamplingParams,
    facts: EngineFacts,
    front: FrontFacts,
    scheduling: Scheduling = USUAL,
) -> Request:
    """Check everything a sender may choose and make the engine's request of it.

    Args:
        id: made by the front end, unique in the engine.
        token_ids: the prompt.
        params: as the sender gave them.
        facts: limits of the engine.
        front: what the front end knows.
        scheduling: how the request stands among others.

    Returns:
        A request whose `max_tokens` is a number that fits the context.

    Raises:
        RequestError: with the field at fault in `param`; code `context_length_exceeded` if the prompt is too long.
    """
    if "generate" not in facts.tasks:
        raise RequestError(
            f"This model generates no text; it serves: {', '.join(facts.tasks)}.", "model", "unsupported_task"
        )
    check_params(params, facts, in_process=front.in_process)
    check_scheduling(scheduling)
    prompt = _prompt(token_ids, params, facts)
    max_tokens = _max_tokens(len(prompt), params, facts)
    return Request(
        id=id,
        token_ids=prompt,
        params=msgspec.structs.replace(params, max_tokens=max_tokens, top_k=_top_k(params.top_k, facts.vocab_size)),
        eos_token_ids=list(front.eos_token_ids),
        bad_words_ids=_bad_words_ids(params.bad_words or [], front.encode, facts.vocab_size),
        priority=scheduling.priority,
        cache_salt=scheduling.cache_salt,
        owner=scheduling.owner,
    )


def check_scheduling(scheduling: Scheduling) -> None:
    """Check what a sender may choose of it. Raises RequestError."""
    check_int("priority", scheduling.priority, *INT32)
    check_text("cache_salt", scheduling.cache_salt, MAX_SALT_CHARS)


def check_params(params: SamplingParams, facts: EngineFacts, *, in_process: bool = False) -> None:
    """Check all of `params` that does not depend on the prompt. Raises RequestError."""
    check_numbers(params)
    for name, value in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if value is not None:
            check_int(name, value, 0, facts.max_logprobs)
    _check_stops(params, facts.vocab_size)
    _check_biases(params, facts.vocab_size)
    if params.structured_outputs is not None:
        check_structured(params.structured_outputs)
    if params.logits_processors and not in_process:
        raise RequestError(
            "logits_processors are callables, which only work with LLM in the same process.", "logits_processors"
        )


def check_numbers(params: SamplingParams) -> None:
    """Check what is out of range in every engine. Raises RequestError."""
    for name, allowed in FLOATS.items():
        check_float(name, getattr(params, name), allowed)
    for name in FLAGS:
        if type(getattr(params, name)) is not bool:
            raise RequestError(f"{name} must be true or false.", name, "invalid_type")
    check_int("n", params.n, 1, MAX_N)
    check_int("top_k", params.top_k, -1, INT64[1])
    check_int("min_tokens", params.min_tokens, 0, INT64[1])
    if params.seed is not None:
        check_int("seed", params.seed, *INT64)
    if params.max_tokens is not None:
        check_int("max_tokens", params.max_tokens, 1, INT64[1])


def check_float(name: str, value: object, allowed: Range) -> None:
    """Check that `value` is a number in `allowed`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number.", name, "invalid_type")
    if value not in allowed:
        raise RequestError(f"{name} must be {allowed}, but is {shown(value)}.", name)


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Check that `value` is an integer from `low` to `high`."""
    if type(value) is not int:
        raise RequestError(f"{name} must be an integer.", name, "invalid_type")
    if not low <= value <= high:
        limit = f"at least {low}" if high >= INT64[1] and value < low else f"from {low} to {high}"
        raise RequestError(f"{name} must be {limit}, but is {shown(value)}.", name)


def check_text(name: str, value: object, max_chars: int) -> None:
    """Check that `value` is a string of at most `max_chars` characters."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string.", name, "invalid_type")
    if len(value) > max_chars:
        raise RequestError(f"{name} must have at most {max_chars} characters, but has {len(value)}.", name)


def check_token_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Check that all `ids` are integers from 0 to vocab_size - 1: any other would read past the embedding."""
    try:
        # One pass without Python code: a prompt may have hundreds of thousands.
        msgspec.convert(ids, _ids_below(vocab_size))
    except msgspec.ValidationError:
        _name_wrong_id(name, ids, vocab_size)


@cache
def _ids_below(vocab_size: int) -> type:
    return list[Annotated[int, msgspec.Meta(ge=0, lt=vocab_size)]]


def _name_wrong_id(name: str, ids: Sequence[int], vocab_size: int) -> NoReturn:
    if any(kind is not int for kind in set(map(type, ids))):
        raise RequestError(f"{name} must be a list of integers.", name, "invalid_type")
    wrong = next(token for token in ids if not 0 <= token < vocab_size)
    raise RequestError(f"{name}: token id {shown(wrong)} is not between 0 and {vocab_size - 1}.", name)


def shown(value: float) -> str:
    """A number for a message: a very long one is cut, so that no reply echoes what it was sent."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return str(value)


def _check_stops(params: SamplingParams, vocab_size: int) -> None:
    stops: object = params.stop_strings
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise RequestError("stop must be a string or a list of strings.", "stop", "invalid_type")
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, but has {len(stops)}.", "stop")
    if not all(stops):
        raise RequestError("stop must not hold an empty string: it would end every text at once.", "stop")
    if any(len(stop.encode("utf-8", "replace")) > MAX_STOP_BYTES for stop in stops):
        raise RequestError(f"a string in stop is longer than {MAX_STOP_BYTES} bytes.", "stop")
    if stops and not params.detokenize:
        raise RequestError("stop strings need detokenize=True: without text there is nothing to find.", "stop")
    if params.stop_token_ids is not None:
        _check_list("stop_token_ids", params.stop_token_ids, MAX_STOP_TOKEN_IDS)
        check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)


def _check_biases(params: SamplingParams, vocab_size: int) -> None:
    if params.logit_bias is not None:
        if not isinstance(params.logit_bias, dict):
            raise RequestError("logit_bias must map token ids to numbers.", "logit_bias", "invalid_type")
        if len(params.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} token ids.", "logit_bias")
        check_token_ids("logit_bias", list(params.logit_bias), vocab_size)
        for bias in params.logit_bias.values():
            check_float("logit_bias", bias, LOGIT_BIAS)
    if params.allowed_token_ids is not None:
        _check_list("allowed_token_ids", params.allowed_token_ids, vocab_size)
        if not params.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty: nothing could be generated.", "allowed_token_ids")
        check_token_ids("allowed_token_ids", params.allowed_token_ids, vocab_size)
    if params.bad_words is not None:
        _check_list("bad_words", params.bad_words, MAX_BAD_WORDS)
        for word in params.bad_words:
            check_text("bad_words", word, MAX_BAD_WORD_CHARS)
        if sum(map(len, params.bad_words)) > MAX_BAD_WORDS_CHARS:
            raise RequestError(f"bad_words may have at most {MAX_BAD_WORDS_CHARS} characters together.", "bad_words")


def _check_list(name: str, value: object, most: int) -> None:
    if not isinstance(value, list):
        raise RequestError(f"{name} must be a list.", name, "invalid_type")
    if len(value) > most:
        raise RequestError(f"{name} takes at most {most} entries, but has {len(value)}.", name)


def _prompt(token_ids: Sequence[int], params: SamplingParams, facts: EngineFacts) -> list[int]:
    """The prompt, cut from the left if the sender asked for it."""
    if not isinstance(token_ids, list | tuple):
        raise RequestError("prompt must be text or a list of token ids.", "prompt", "invalid_type")
    if not token_ids:
        raise RequestError("prompt must hold at least one token.", "prompt", "empty_prompt")
    if params.truncate_prompt_tokens is None:
        check_room(len(token_ids), facts)
    check_token_ids("prompt", token_ids, facts.vocab_size)
    fitting = max(1, min(facts.max_model_len - (params.max_tokens or 1), facts.max_prompt_len))
    kept = tokens_kept(params.truncate_prompt_tokens, facts.max_model_len, fitting)
    return list(token_ids if kept is None else token_ids[-kept:])


def tokens_kept(asked: int | None, most: int, fitting: int) -> int | None:
    """How many tokens of a prompt truncate_prompt_tokens keeps: None all, -1 as many as fit. Raises RequestError."""
    if asked is None:
        return None
    check_int("truncate_prompt_tokens", asked, -1, most)
    if asked == 0:
        raise RequestError("truncate_prompt_tokens must be at least 1, or -1.", "truncate_prompt_tokens")
    return asked if asked > 0 else fitting


def _max_tokens(prompt_len: int, params: SamplingParams, facts: EngineFacts) -> int:
    """How many tokens may be generated: what was asked, as far as the context reaches."""
    check_room(prompt_len, facts)
    room = facts.max_model_len - prompt_len
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    if params.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens ({shown(params.min_tokens)}) must not be more than max_tokens ({max_tokens} fit here).",
            "min_tokens",
        )
    return max_tokens


def check_room(prompt_len: int, facts: EngineFacts) -> None:
    """Refuse a prompt that leaves no room to answer."""
    if prompt_len >= facts.max_model_len:
        raise RequestError(
            f"This model's maximum context length is {facts.max_model_len} tokens. However, the prompt has "
            f"{prompt_len} tokens, and at least 1 must be left for the answer. Please reduce the length of the prompt.",
            "prompt",
            "context_length_exceeded",
        )
    if prompt_len > facts.max_prompt_len:
        raise RequestError(
            f"This model's maximum context length is {facts.max_model_len} tokens. However, the memory of this server "
            f"holds prompts of at most {facts.max_prompt_len} tokens, and this one has {prompt_len}. "
            "Please reduce the length of the prompt.",
            "prompt",
            "context_length_exceeded",
        )


def _top_k(top_k: int, vocab_size: int) -> int:
    """top_k with one word for "keep all": 0, also for -1 and for as many as there are tokens."""
    return top_k if 0 < top_k < vocab_size else 0


def _bad_words_ids(words: list[str], encode: Encode | None, vocab_size: int) -> list[list[int]]:
    """Token sequences that spell each word, at the start of a text and after a space."""
    if words and encode is None:
        raise RequestError("bad_words need a tokenizer; this engine has none.", "bad_words")
    sequences: list[list[int]] = []
    for word in words:
        plain, spaced = (encode(text) if encode else [] for text in (word.strip(), " " + word.strip()))
        if not word.strip() or not plain:
            raise RequestError("bad_words must not hold an empty word.", "bad_words")
        sequences.append(plain)
        # A spelling that ends with the plain one can never be completed anyway.
        if spaced[-len(plain) :] != plain:
            sequences.append(spaced)
        if (tokens := max(len(plain), len(spaced))) > MAX_BAD_WORD_TOKENS:
            which = f"{word.strip()[:40]!r} is {tokens} tokens"
            raise RequestError(f"bad_words: {which}; a word may have {MAX_BAD_WORD_TOKENS}.", "bad_words")
    for sequence in sequences:
        check_token_ids("bad_words", sequence, vocab_size)
    return sequences
