"""A helper process that compiles each grammar first, with limits: `python -m quire.structured.checker_process FD`.

A grammar that would take too much time or memory ends this process and nothing else. `checker.py` starts it and asks.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback

import msgspec

from quire.base.address_space import limit_address_space
from quire.base.errors import RequestError
from quire.messages.frames import receive, send
from quire.messages.rank import Verdict
from quire.messages.structured import StructuredOutputsParams
from quire.messages.wire import FAILED
from quire.structured.llguidance import LLBackend
from quire.structured.matcher import Vocabulary

CPU_S = 2.0
WALL_S = 30.0
"""For what waits: a grammar that only computes has used up its processor time long before, unless others take it."""
MEMORY_BYTES = 1 << 30
"""Beyond what the tokenizer takes."""
OUT_OF_MEMORY = 3
"""How this process ends where Python finds no memory; libraries abort."""


def main() -> int:
    """Read the vocabulary, then check grammars until the other side ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as channel:
        first = receive(channel)
        if first is None:
            return 0
        try:
            backend = LLBackend(msgspec.json.decode(first, type=Vocabulary))
        except RequestError as error:
            _answer(channel, Verdict(error.message, error.code))
            return 0
        limit_address_space(MEMORY_BYTES)
        _answer(channel, Verdict())
        _silence_libraries()
        while (frame := receive(channel)) is not None:
            _check(channel, backend, msgspec.json.decode(frame, type=StructuredOutputsParams))
    return 0


def _silence_libraries() -> None:
    """What strangers' grammars make libraries say is nothing for the log; what Python says is."""
    descriptor = sys.stderr.fileno()
    sys.stderr = os.fdopen(os.dup(descriptor), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _check(channel: socket.socket, backend: LLBackend, wanted: StructuredOutputsParams) -> None:
    # The default action of both signals is to end the process: nothing in a native library can hold it up.
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    verdict = Verdict()
    try:
        backend.compile(wanted)
    except RequestError as error:
        verdict = Verdict(error.message, error.code)
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    except BaseException as error:  # a fault of ours; what panics in Rust is no Exception
        traceback.print_exc()
        verdict = Verdict(f"the grammar checker has failed with {type(error).__name__}", FAILED)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    _answer(channel, verdict)


def _answer(channel: socket.socket, verdict: Verdict) -> None:
    send(channel, msgspec.json.encode(verdict))


if __name__ == "__main__":
    sys.exit(main())
