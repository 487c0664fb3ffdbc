"""From the fields of a request to `SamplingParams`, the same way for chat completions and completions.

Values are only put in place here; `quire/messages/validate.py` judges them.
"""

import re

import msgspec

from quire.base.errors import RequestError
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.server.conversation.schema import Generating
from quire.server.conversation.structured import structured_of
from quire.server.service import Service

SAME_NAME = (
    *("n", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "include_stop_str_in_output", "ignore_eos"),
    *("bad_words", "allowed_token_ids", "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens"),
    "truncate_prompt_tokens",
)
"""Fields that SamplingParams calls by the same name."""

LIBRARY_MAX_TOKENS = SamplingParams().max_tokens

_TOKEN_ID = re.compile(r"\d{1,10}", re.ASCII)


def sampling_params(
    asked: Generating,
    service: Service,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The sampling of a request: the model's defaults, then what was asked."""
    given = {
        name: value for name, value in msgspec.structs.asdict(asked).items() if name in SAME_NAME and value is not None
    }
    if asked.logit_bias:
        given["logit_bias"] = {_token_id(key): bias for key, bias in asked.logit_bias.items()}
    if (form := structured_of(asked)) is not None:
        given["structured_outputs"] = form
    if prompt_logprobs is not None:
        given["prompt_logprobs"] = prompt_logprobs
    kind = RequestOutputKind.DELTA if asked.stream else RequestOutputKind.FINAL_ONLY
    defaults = service.engine.default_params()
    return msgspec.structs.replace(defaults, **given, max_tokens=max_tokens, logprobs=logprobs, output_kind=kind)


def model_max_tokens(service: Service) -> int | None:
    """The model's own default for the length of an answer, if its generation_config.json has one."""
    own = service.engine.default_params().max_tokens
    return None if own == LIBRARY_MAX_TOKENS else own


def _token_id(key: str) -> int:
    if not _TOKEN_ID.fullmatch(key):
        raise RequestError("logit_bias must have token ids as keys.", "logit_bias")
    return int(key)
