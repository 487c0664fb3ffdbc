"""A model that answers without an engine, and a parser filled by a command."""

import io
from argparse import Namespace
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from quire.base.errors import RequestError
from quire.cli.local import Message
from quire.cli.parser import Parser
from quire.cli.run import Streams
from quire.config.fields import EngineConfig
from quire.messages.outputs import CompletionOutput, FinishReason, RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.state import Layout
from quire.messages.wire import EngineFacts


def output(
    text: str, token_ids: list[int], reason: FinishReason | None = None, error: str | None = None
) -> RequestOutput:
    """One output of a stream."""
    return RequestOutput(
        request_id="0",
        prompt=None,
        prompt_token_ids=[],
        outputs=[CompletionOutput(index=0, text=text, token_ids=token_ids, finish_reason=reason)],
        finished=reason is not None,
        error=error,
    )


@dataclass
class FakeModel:
    """Answers with the words of its prompt, backwards; remembers what it was asked and how streams ended."""

    template: bool = True
    fails_after: int | None = None
    interrupts_after: int | None = None
    short_by: int = 0
    max_model_len: int = 100_000
    vocab_size: int = 200_000
    made_from: list[EngineConfig] = field(default_factory=list)
    asked: list[tuple[object, SamplingParams]] = field(default_factory=list)
    batches: list[list[list[int]]] = field(default_factory=list)
    stopped: int = 0
    closed: bool = False

    def make(self, engine: EngineConfig) -> "FakeModel":
        """The `make` that commands take."""
        self.made_from.append(engine)
        return self

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            version="0",
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            max_num_seqs=4,
            max_prompt_len=self.max_model_len,
            max_logprobs=20,
            layout=Layout([], self.max_model_len),
            device="cpu",
            dtype="float32",
            timeline={},
        )

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams(temperature=0.25, top_p=0.5)

    def stream(self, prompt: str, sampling_params: SamplingParams) -> Iterator[RequestOutput]:
        self.asked.append((prompt, sampling_params))
        return self._words(prompt)

    def stream_chat(self, messages: Sequence[Message], sampling_params: SamplingParams) -> Iterator[RequestOutput]:
        if not self.template:
            raise RequestError("the model has no chat template", "messages", "no_chat_template")
        self.asked.append((list(messages), sampling_params))
        return self._words(messages[-1]["content"])

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        self.batches.append([prompt["prompt_token_ids"] for prompt in prompts])
        self.asked += [("batch", params) for params in sampling_params]
        return [output("", [7] * ((params.max_tokens or 0) - self.short_by), "length") for params in sampling_params]

    def close(self) -> None:
        self.closed = True

    def _words(self, text: str) -> Generator[RequestOutput, None, None]:
        words = [f"{word} " for word in reversed(text.split())]
        try:
            for position, word in enumerate(words):
                if position == self.fails_after:
                    yield output("", [], "error", "the device burnt down")
                if position == self.interrupts_after:
                    raise KeyboardInterrupt
                yield output(word, [position], "stop" if position == len(words) - 1 else None)
        finally:
            self.stopped += 1


class Tty(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def streams(stdin: str = "", *, tty: bool = False) -> Streams:
    """Standard streams in memory."""
    kind = Tty if tty else io.StringIO
    return Streams(kind(stdin), kind(), kind())


def parsed(command: ModuleType, *words: str) -> Namespace:
    """The arguments of a command line of `command`."""
    parser = Parser("test", "a test")
    command.add_arguments(parser)
    return parser.parse(words)
