"""A text worker: `python -m quire.server.text.worker FD`, started by `pool.py`; one job at a time, with limits.

A template that takes too much time or memory ends this process and nothing else; whoever waits for it is told so by the
other side. It imports no more than it must: there are several of them.
"""

import contextlib
import signal
import socket
import sys

from quire.base import logging
from quire.base.address_space import limit_address_space
from quire.base.lifeline import die_with_parent
from quire.chat.template import ChatTemplate
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.text import INTEGERS, Failed, FromWorker, Job, Ready, Refused, Render, Setup, ToWorker
from quire.server.text.handler import JobHandler
from quire.tokenizer.tokenizer import Tokenizer

RENDER_CPU_S = 4.0
"""Of processor time; the template's own limit (`chat/sandbox.py`) is shorter, and kinder where it gets its turn."""

MEMORY_BYTES = 2 << 30
"""Beyond what the tokenizer takes."""


def main() -> int:
    """Work until the other side ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    codec: Codec[ToWorker] = Codec(ToWorker)
    # An answer that nobody takes any more is the end, as is the end of the questions.
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[-1])) as channel:
        while (frame := receive(channel)) is not None:
            job = codec.decode(frame)
            if isinstance(job, Setup):
                handler = _handler(job)
                send(channel, codec.encode(Ready()))
            else:
                send(channel, _encoded(codec, _done(handler, job)))
    return 0


def _handler(setup: Setup) -> JobHandler:
    logging.setup(setup.log_level, setup.log_format)
    tokenizer = Tokenizer.load(setup.tokenizer)
    handler = JobHandler(tokenizer, None if setup.template is None else ChatTemplate(setup.template, tokenizer))
    limit_address_space(MEMORY_BYTES)
    return handler


def _done(handler: JobHandler, job: Job) -> FromWorker:
    if not isinstance(job, Render):
        return handler.do(job)
    # The default action of this signal is to end the process: no computation can hold it up.
    signal.setitimer(signal.ITIMER_PROF, RENDER_CPU_S)
    try:
        return handler.do(job)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _encoded(codec: Codec[ToWorker], answer: FromWorker) -> bytes:
    try:
        return codec.encode(answer)
    except OverflowError:
        return codec.encode(Refused(INTEGERS, None, "invalid_json"))
    except MemoryError:
        return codec.encode(Failed("The text is too long to be worked on."))


if __name__ == "__main__":
    sys.exit(main())
