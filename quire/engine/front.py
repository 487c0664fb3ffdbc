"""`FrontEnd`: what `LLM` and `AsyncLLM` share: the checkpoint's facts, tokenizer and template, prompts made requests.

It owns no request and starts nothing. It needs no torch.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from quire.base.errors import CheckpointError, RequestError
from quire.chat.messages import parse_messages
from quire.chat.template import ChatTemplate
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.names import resolve
from quire.checkpoint.read import chat_template
from quire.config.fields import EngineConfig
from quire.config.model import facts_of
from quire.messages.params import SamplingParams
from quire.messages.pooling import PoolingParams
from quire.messages.pooling_outputs import Side
from quire.messages.prompts import PairPrompt, TextPrompt, TokensPrompt
from quire.messages.request import USUAL, Request, Scheduling
from quire.messages.validate import FrontFacts, check_numbers, make_request
from quire.messages.validate_pooling import kept_tokens, make_pooling_request, read_sides
from quire.messages.wire import EngineFacts
from quire.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int] | TextPrompt | TokensPrompt

ChatMessage = Mapping[str, Any]
"""A message as the OpenAI API writes it: `role`, `content`, ..."""

FORMS = "a text, a list of token ids, or a dict with 'prompt' or 'prompt_token_ids'"
"""What a prompt may be, for people."""

PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "second"})
"""What a dict may hold that is one."""

DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of generation_config.json that become sampling defaults."""


class FrontEnd:
    """The text side of one model.

    Args:
        config: what the user asked for.
        model: the checkpoint, if somebody has read its facts already.
        in_process: whether the engine is in this process.

    Attributes:
        model: the checkpoint.
        tokenizer_path: where its tokenizer lies.
        tokenizer: of it.

    Raises:
        CheckpointError: the folder, config.json or tokenizer is missing or damaged, or a sampling default is none.
    """

    def __init__(self, config: EngineConfig, model: ModelFacts | None = None, *, in_process: bool = False) -> None:
        settings = config.model
        self.model = model or facts_of(settings)
        self.tokenizer_path = (
            str(resolve(settings.tokenizer, None)) if settings.tokenizer is not None else self.model.path
        )
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        self._facts = FrontFacts(self.model.eos_token_ids, self.tokenizer.encode_word, in_process)
        self._use_generation_config = settings.generation_config == "auto"
        self._given_template: ChatTemplate | None = None
        self._ids = itertools.count()
        self._check_defaults()

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The tokenizer's, else the model's; None where neither has one. Raises CheckpointError for a damaged one.

        Read where it is wanted: whoever brings another does not need it.
        """
        template = self.model.chat_template
        if self.tokenizer_path != self.model.path:
            template = chat_template(Path(self.tokenizer_path)) or template
        return None if template is None else ChatTemplate(template, self.tokenizer)

    def new_id(self) -> str:
        """An id that this front end has not used."""
        return str(next(self._ids))

    def default_params(self) -> SamplingParams:
        """SamplingParams with the checkpoint's own defaults, if the user wants them."""
        if not self._use_generation_config:
            return SamplingParams()
        given = self.model.generation_config
        chosen = {name: given[name] for name in DEFAULTS if given.get(name) is not None}
        if given.get("do_sample") is False:
            chosen = {"temperature": 0.0}
        if given.get("max_new_tokens") is not None:
            chosen["max_tokens"] = given["max_new_tokens"]
        return SamplingParams(**chosen)

    def _check_defaults(self) -> None:
        """Nobody is to be refused for what they have not said. Raises CheckpointError."""
        if self.model.pooling is None:
            try:
                check_numbers(self.default_params())
            except RequestError as error:
                raise CheckpointError(
                    f"{self.model.path}/generation_config.json: {error.message.rstrip('.')}; correct it, or leave it "
                    "unread with --generation-config none"
                ) from None

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **template_args: Any,
    ) -> list[int]:
        """Token ids of a conversation, by the checkpoint's template or another. Raises RequestError if there is none.

        Args:
            chat_template: the text of another template.
            chat_template_kwargs: what the template knows; the same as `template_args`.
        """
        template = self._template(chat_template)
        if template is None:
            raise RequestError(
                f"the model {self.model.name!r} has no chat template; use plain prompts, or give a template",
                param="messages",
                code="no_chat_template",
            )
        parsed = parse_messages([dict(message) for message in messages])
        return template.render(parsed, **{**template_args, **(chat_template_kwargs or {})})

    def _template(self, source: str | None) -> ChatTemplate | None:
        """The checkpoint's, or that of `source`; the last one is kept: it takes longer to compile than to render."""
        if source is None:
            return self.chat_template
        given = self._given_template
        if given is None or given.source != source:
            given = self._given_template = ChatTemplate(source, self.tokenizer)
        return given

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        facts: EngineFacts,
        scheduling: Scheduling = USUAL,
    ) -> tuple[Request, str | None]:
        """The request of a prompt, and the prompt's text if it came as text. Raises RequestError."""
        text, token_ids = self._read(prompt)
        return make_request(request_id, token_ids, params, facts, self._facts, scheduling), text

    def prepare_pooling(
        self,
        request_id: str,
        prompt: Prompt | PairPrompt,
        params: PoolingParams,
        facts: EngineFacts,
        scheduling: Scheduling = USUAL,
    ) -> tuple[Request, str | None]:
        """The request of a text that is pooled, and the text if it came as one. Raises RequestError."""
        second = cast(PairPrompt, prompt)["second"] if isinstance(prompt, Mapping) and "second" in prompt else None
        text, token_ids = self._read_within(prompt, kept_tokens(params, facts))
        request = make_pooling_request(request_id, token_ids, params, facts, second=second, scheduling=scheduling)
        return request, text

    def prompted(self, prompt: Prompt, name: str | None = None) -> Prompt:
        """A text behind the checkpoint's prompt called `name`, or behind the one that always goes there.

        Raises RequestError for a name that the checkpoint does not have; token ids stay as they are.
        """
        if isinstance(prompt, Mapping) and "prompt" in prompt:
            prompt = cast(TextPrompt, prompt)["prompt"]
        before = "" if self.model.pooling is None else self.model.pooling.prompt_of(name)
        return before + prompt if isinstance(prompt, str) else prompt

    def pair(self, first: str, second: str) -> PairPrompt:
        """Two texts as one prompt."""
        pooler = self.model.pooling
        ids, start = self.tokenizer.encode_pair(first, second, None if pooler is None else pooler.frame)
        return {"prompt_token_ids": ids, "second": start}

    def sides(self, sides: Sequence[Side], params: PoolingParams, facts: EngineFacts) -> list[Prompt]:
        """Texts that are compared with others, as the model reads them. Raises RequestError."""
        ids = [self._read_within(side.text, kept_tokens(params, facts))[1] for side in sides]
        return list(read_sides(sides, ids, params, facts))

    def _read_within(self, prompt: Prompt | PairPrompt, most: int | None) -> tuple[str | None, list[int]]:
        text, token_ids = self._read(prompt)
        if text is not None and most is not None:
            token_ids = self.tokenizer.encode_within(text, most)
        return text, token_ids

    def _read(self, prompt: Prompt | PairPrompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        if isinstance(prompt, Mapping):
            _refuse_others(prompt)
            if "prompt_token_ids" in prompt:
                return None, list(prompt["prompt_token_ids"])  # type: ignore[typeddict-item]
            if "prompt" in prompt:
                return self._read(prompt["prompt"])
            raise RequestError("a prompt given as a dict needs 'prompt' or 'prompt_token_ids'", param="prompt")
        if not isinstance(prompt, Iterable):
            raise RequestError(f"a prompt is of type {type(prompt).__name__}; give {FORMS}", param="prompt")
        return None, list(prompt)


def _refuse_others(prompt: Mapping[str, Any]) -> None:
    """What a prompt holds beside its text or ids would change the answer. Raises RequestError."""
    for name, value in prompt.items():
        if name not in PROMPT_KEYS and value is not None:
            raise RequestError(f"a prompt's {str(name)[:64]!r} is not served; give {FORMS} without it", param="prompt")


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Several prompts as a list; a text, a dict and a list of token ids are one prompt.

    Raises RequestError for what can be neither one prompt nor several.
    """
    if isinstance(prompts, str | Mapping):
        return [cast(Prompt, prompts)]
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"prompts are of type {type(prompts).__name__}; give {FORMS}, or a list of those", param="prompt"
        )
    if prompts and isinstance(prompts[0], int):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))
