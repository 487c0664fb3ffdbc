"""`GrammarChecker`: asks a process, starts one when it is needed, and tells from its end why it ended.

Calls wait for that process, so they are made from a thread of their own (`engine/grammar_worker.py`).
"""

import signal
import socket
import subprocess

import msgspec

from quire.base.errors import EngineError, RequestError
from quire.base.interpreter import python
from quire.config import environ
from quire.messages.frames import pair_for_child, receive, send
from quire.messages.rank import Verdict
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.structured.checker_process import OUT_OF_MEMORY
from quire.structured.matcher import Vocabulary

_ENDINGS = {
    **dict.fromkeys((-signal.SIGPROF, -signal.SIGALRM), ("takes too long to compile", "grammar_timeout")),
    # Libraries that find no memory, or no stack, end so.
    **dict.fromkeys(
        (OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS),
        ("takes too much memory to compile", "grammar_too_complex"),
    ),
}
"""How the process ends by the fault of a grammar. By any other end the grammar is none the worse: whom the kernel kills
depends on the machine's memory."""

_END = "the grammar checker has ended with {}"


class GrammarChecker:
    """One process at a time, for one vocabulary; for one thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def check(self, wanted: StructuredOutputsParams) -> None:
        """Let the process compile a grammar.

        Raises:
            RequestError: with code invalid_schema, grammar_timeout or grammar_too_complex.
            EngineError: the process has failed, or ended, by no fault of the grammar; its log says why.
        """
        channel = self._channel or self._open()
        answer = self._ask(channel, msgspec.json.encode(wanted))
        if answer is None:
            raise _blame(self._ended())
        msgspec.json.decode(answer, type=Verdict).check()

    def interrupt(self) -> None:
        """Kill the process, from any thread; whoever waits for it goes on with an error."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            process.wait()

    def _open(self) -> socket.socket:
        with pair_for_child() as (ours, theirs):
            self._process = subprocess.Popen(
                [*python(), "-m", "quire.structured.checker_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environ.snapshot() | {"RAYON_NUM_THREADS": "1"},
            )
        self._channel = ours
        answer = self._ask(ours, msgspec.json.encode(self._vocabulary))
        if answer is None:  # it has seen no grammar that it could blame
            raise EngineError(_END.format(self._ended()))
        try:
            msgspec.json.decode(answer, type=Verdict).check()
        except RequestError:
            self.close()
            raise
        return ours

    def _ask(self, channel: socket.socket, frame: bytes) -> bytes | None:
        """The answer; None where the process has ended."""
        try:
            send(channel, frame)
            return receive(channel)
        except OSError:
            return None

    def _ended(self) -> int:
        """How the process has ended."""
        process = self._process
        if process is None:
            raise EngineError("the grammar checker was closed")
        status = process.wait()
        self.close()
        return status


def _blame(status: int) -> EngineError | RequestError:
    if status not in _ENDINGS:
        return EngineError(_END.format(status))
    why, code = _ENDINGS[status]
    return RequestError(f"the grammar {why}; make it simpler (shorter repetitions, fewer rules).", FIELD, code)
