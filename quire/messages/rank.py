"""The conversation between an executor and its rank processes. Answers come in the order of the questions."""

import msgspec

from quire.base.errors import EngineError, RequestError
from quire.config.spec import RunSpec
from quire.messages.plan import StepPlan, StepResult
from quire.messages.state import Capacity, Layout
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.messages.wire import FAILED


class Begin(msgspec.Struct, tag=True):
    """Load the model as rank `rank` of `size`; answered by Loaded. `rendezvous` is where ranks find each other."""

    spec: RunSpec
    rank: int
    size: int
    rendezvous: str


class Loading(msgspec.Struct, tag=True):
    """Bytes of weights so far and in all: rank 0 says so now and then, before Loaded."""

    done: int
    total: int


class Loaded(msgspec.Struct, tag=True):
    """The model is loaded; `choices` says which provider serves each op."""

    choices: dict[str, str]


class Measure(msgspec.Struct, tag=True):
    """Run the largest step; answered by Measured."""


class Measured(msgspec.Struct, tag=True):
    """What is left for pages."""

    capacity: Capacity


class Allocate(msgspec.Struct, tag=True):
    """Take pages; answered by Ready."""

    layout: Layout


class Ready(msgspec.Struct, tag=True):
    """Pages are taken."""


class Run(msgspec.Struct, tag=True):
    """Compute a step; only rank 0 answers, with Result."""

    plan: StepPlan


class Result(msgspec.Struct, tag=True):
    """A step's result."""

    result: StepResult


class Broken(msgspec.Struct, tag=True):
    """The rank cannot go on.

    Attributes:
        kind: the error's class in quire.base.errors, so that the reader can raise the same.
        message: the sentence.
    """

    kind: str
    message: str


class Prepare(msgspec.Struct, tag=True):
    """Drop compiled grammars and compile one. Goes to rank 0 on a channel of its own, beside steps; Verdict answers.

    Attributes:
        wanted: what to compile, if anything.
        unused: keys of grammars that are dropped before.
    """

    wanted: StructuredOutputsParams | None
    tokenizer: str
    vocab_size: int
    eos: tuple[int, ...]
    unused: list[str] = []


class Verdict(msgspec.Struct, tag=True):
    """Of a grammar: nothing (it is good, and ready at a rank), or why not; `wire.FAILED` is no fault of its own."""

    message: str = ""
    code: str = ""

    def check(self, who: str = "") -> None:
        """Raise what it says: EngineError, which begins with `who`, or RequestError for a grammar that is refused."""
        if self.code == FAILED:
            raise EngineError(f"{who}{self.message}")
        if self.message:
            raise RequestError(self.message, FIELD, self.code)


ToRank = Begin | Measure | Allocate | Run
FromRank = Loading | Loaded | Measured | Ready | Result | Broken
