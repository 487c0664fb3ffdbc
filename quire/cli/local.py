"""The engine as the commands see it: a model that streams text, and how one is made.

Commands take a `Make`, so that tests hand in a fake and no command imports the engine before it runs.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import msgspec

from quire.base.errors import EngineError
from quire.base.registry import load
from quire.config.environ import become_computing
from quire.config.fields import EngineConfig
from quire.config.sources import flatten
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.wire import EngineFacts

Message = dict[str, str]


class TextModel(Protocol):
    """The part of `quire.LLM` that the commands use."""

    @property
    def facts(self) -> EngineFacts:
        """Limits of the engine."""
        ...

    def stream(self, prompt: str, sampling_params: SamplingParams) -> Iterator[RequestOutput]:
        """Complete `prompt`; each output holds what is new."""
        ...

    def stream_chat(self, messages: Sequence[Message], sampling_params: SamplingParams) -> Iterator[RequestOutput]:
        """Answer `messages`. Raises RequestError with code no_chat_template before the first output."""
        ...

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        """Complete all prompts."""
        ...

    def get_default_sampling_params(self) -> SamplingParams:
        """The checkpoint's sampling defaults."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...


Make = Callable[[EngineConfig], TextModel]


def make_llm(engine: EngineConfig) -> TextModel:
    """A `quire.LLM` of this configuration, in a process that is ours to prepare."""
    become_computing()
    return cast(TextModel, load("quire.engine.llm:LLM")(**flatten(engine)))


def add_sampling(parser: ArgumentParser, max_tokens: int) -> None:
    """Add the flags of sampling. `--seed` is a setting of the engine already, and fixes the noise too when given."""
    group = parser.add_argument_group("sampling", "How the answer is chosen; unset takes the checkpoint's defaults.")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    group.add_argument("--top-p", type=float, metavar="X", help="keep the most probable tokens up to this share")
    group.add_argument("--top-k", type=int, metavar="N", help="keep the N most probable tokens")
    group.add_argument("--max-tokens", type=int, metavar="N", default=max_tokens, help=f"longest answer [{max_tokens}]")
    group.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")


def sampling_params(args: Namespace, defaults: SamplingParams) -> SamplingParams:
    """`defaults` with what the flags of `add_sampling` say."""
    said = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "max_tokens")}
    if "seed" in vars(args):
        said["seed"] = int(args.seed)
    return msgspec.structs.replace(defaults, **{name: value for name, value in said.items() if value is not None})


def completion(output: RequestOutput) -> CompletionOutput:
    """The one completion of `output`. Raises EngineError if it failed."""
    first = output.outputs[0]
    if first.finish_reason == "error":
        raise EngineError(output.error or "the engine failed while answering")
    return first
