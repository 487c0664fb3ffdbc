"""The conversation between the supervisor of a server and its front ends: a socket pair each, typed frames."""

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.config.fields import Config
from quire.messages.wire import EngineFacts


class FrontEndInit(msgspec.Struct, tag=True, kw_only=True):
    """The first thing that a front end hears.

    Attributes:
        config: of the whole server.
        model: the checkpoint, resolved once.
        count: how many front ends there are.
        listener, pulse: descriptors of its socket and of the page that cores write.
        name: of this front end; no other one of this server has had it.
        secret: what cores ask of front ends.
        folder: the server's private one; whoever is left when the supervisor dies removes it.
        facts: of an engine that was ready before this front end was born.
    """

    config: Config
    model: ModelFacts
    count: int
    listener: int
    pulse: int
    name: str
    secret: str
    folder: str
    facts: EngineFacts | None


class EngineUp(msgspec.Struct, tag=True):
    """A core has been started; it listens at `address` and will say when it is ready."""

    address: str


class EngineDown(msgspec.Struct, tag=True):
    """The core is gone.

    Attributes:
        reason: for the log.
        retry_after_s: when the next one may be ready.
        culprit: the request on trial when it died, if one was.
        final: there will be no next one.
    """

    reason: str
    retry_after_s: int
    culprit: str = ""
    final: bool = False


class FrontGone(msgspec.Struct, tag=True):
    """To a core, as a line of JSON on its standard input: the front end called `name` has died."""

    name: str


class Stop(msgspec.Struct, tag=True):
    """Drain; the second time, end at once."""


class CrashReport(msgspec.Struct, tag=True):
    """News of a request that was being served when a core died.

    Attributes:
        print: which request; see `engine.suspects.fingerprint`.
        tokens: made when the core died.
        quarantined: whether the core died of it.
    """

    print: bytes
    tokens: int
    quarantined: bool = False


class Tally(msgspec.Struct):
    """A family of counters as one process has counted them: samples are (name, labels, value)."""

    name: str
    about: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


class Count(msgspec.Struct, tag=True):
    """What have you counted so far?"""


class Fetch(msgspec.Struct, tag=True):
    """Have you the response `id` of `owner`? With `cancel`, end it if it runs in the background."""

    owner: bytes
    id: str
    cancel: bool = False


class Counted(msgspec.Struct, tag=True):
    """All that a front end has counted, and how many sequences it has open."""

    open: int
    tallies: list[Tally]


class Fetched(msgspec.Struct, tag=True):
    """A response: its JSON, and the JSON of its conversation if one may go on from it."""

    body: bytes
    turns: bytes = b""


class Nothing(msgspec.Struct, tag=True):
    """There is nothing to tell."""


Question = Count | Fetch
Reply = Counted | Fetched | Nothing


class Ask(msgspec.Struct, tag=True):
    """A front end asks all others.

    Attributes:
        number: chosen by whoever asks, so that it knows the answers.
        question: what.
        own: what the front end itself would say; the supervisor keeps the last counts of the dead.
    """

    number: int
    question: Question
    own: Reply


class Asked(msgspec.Struct, tag=True):
    """Another front end asks."""

    number: int
    question: Question


class Answered(msgspec.Struct, tag=True):
    """What a front end says to an `Asked`."""

    number: int
    reply: Reply


class Answers(msgspec.Struct, tag=True):
    """What the others have said to an `Ask`."""

    number: int
    replies: list[Reply]


class Serving(msgspec.Struct, tag=True):
    """The front end answers requests; what to print, and what engine it serves."""

    greeting: str
    facts: EngineFacts


class CannotServe(msgspec.Struct, tag=True):
    """The front end cannot start, and neither could another one; the message says why."""

    message: str


class Alive(msgspec.Struct, tag=True):
    """The event loop of a front end goes round."""


ToFront = FrontEndInit | EngineUp | EngineDown | Stop | CrashReport | Asked | Answers
FromFront = Alive | Serving | CannotServe | CrashReport | Ask | Answered
