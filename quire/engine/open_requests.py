"""`OpenRequests`: what a front end has asked for and not yet been told: streams, their texts, and who is suspected.

Cores come and go; whether one serves is not known here: what it must be told goes through `send`. Owned by `AsyncLLM`.
"""

from collections.abc import Callable, Sequence

from quire.base.errors import EngineDeadError, EngineError, RequestError
from quire.base.logging import get_logger
from quire.engine.outputs import OutputProcessor
from quire.engine.streams import Stream
from quire.engine.suspects import Suspects, fingerprint
from quire.messages.control import CrashReport
from quire.messages.wire import Abort, Delta, FromClient, Refused
from quire.tokenizer.tokenizer import Tokenizer

log = get_logger(__name__)


class OpenRequests:
    """What a front end has asked of cores and is still owed.

    Args:
        tokenizer: makes text of what the core says.
        send: tells the core, if there is one.

    Attributes:
        suspects: requests that cores died of.
    """

    def __init__(self, tokenizer: Tokenizer, send: Callable[[FromClient], None]) -> None:
        self.suspects = Suspects()
        self._send = send
        self._processor = OutputProcessor(tokenizer)
        self._streams: dict[str, Stream] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._streams)

    def __contains__(self, request_id: str) -> bool:
        """Whether a request of this id is open."""
        return request_id in self._streams

    def begin(self, stream: Stream) -> None:
        """Ask for a request. Raises RequestError if cores have died of it."""
        self._ask(stream)
        self._streams[stream.request.id] = stream

    def ask_again(self) -> None:
        """Ask the next core for all that the last one owed."""
        # Who has failed only waits for its reader: nothing is asked again in its name.
        for stream in [each for each in self._streams.values() if not each.failed]:
            try:
                self._ask(stream)
            except RequestError as error:
                stream.fail(error)

    def finished(self, stream: Stream) -> None:
        """Its last output is about to be read: nothing is held against it."""
        if self.suspects:
            self.suspects.clear(stream.request)

    def end(self, stream: Stream, finished: bool) -> None:
        """Its reader has gone; if that is before it has `finished`, so has the core's work on it."""
        request_id = stream.request.id
        self._streams.pop(request_id, None)
        if not finished and not stream.failed:
            self._processor.abort(request_id)
            self._send(Abort([request_id]))

    def abort(self, request_id: str) -> None:
        """End a request before its time; its reader sees that. Unknown ids are ignored."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._send(Abort([request_id]))
        # The core says nothing of aborted requests; the ends that it would have sent are made here.
        ends = [Delta(request_id, index, [], finish_reason="abort") for index in range(stream.request.params.n)]
        outputs, _ = self._processor.process(ends)
        for output in outputs:
            stream.put(output)

    def take(self, deltas: Sequence[Delta]) -> None:
        """Hand the core's news to those who read them."""
        outputs, finishes = self._processor.process(deltas)
        for finish in finishes:
            self._send(finish)
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)

    def refuse(self, refused: Refused) -> None:
        """The core does not take a request."""
        self._processor.abort(refused.id)
        stream = self._streams.get(refused.id)
        if stream is not None:
            stream.fail(refused.error)

    def lose_core(self, reason: str, retry_after_s: int, culprit: str) -> list[CrashReport]:
        """The core died of `culprit`, or of nobody knows whom: what was read ends, all else waits for the next core.

        Returns:
            What is held against which request from now on.
        """
        reports = []
        for request_id, stream in self._streams.items():
            if stream.failed:
                continue
            made = self._processor.made(request_id)
            self._processor.abort(request_id)
            report = CrashReport(fingerprint(stream.request), made, quarantined=request_id == culprit)
            self.suspects.learn(report)
            reports.append(report)
            if report.quarantined:
                log.error("request %s was being served when two engines died; it is refused from now on", request_id)
                stream.fail(EngineError("The engine failed twice on this request; it is not tried again."))
            elif stream.taken:
                stream.fail(EngineDeadError(reason, retry_after_s))
            else:
                stream.restart()
        return reports

    def fail(self, reason: str) -> None:
        """No core will come any more: all end with an error."""
        for request_id, stream in self._streams.items():
            self._processor.abort(request_id)
            stream.fail(EngineDeadError(reason))

    def _ask(self, stream: Stream) -> None:
        submit = self.suspects.submit(stream.request)
        self._processor.add(stream.request, stream.prompt, stream.params)
        try:
            self._send(submit)
        except BaseException:
            self._processor.abort(stream.request.id)
            raise
