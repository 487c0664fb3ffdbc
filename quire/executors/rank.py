"""One rank as a process: `python -m quire.executors.rank FD SIDE [tied]`, started by `executors/processes.py`.

It reads plans from the socket FD and computes them; it ends when the socket does. On the socket SIDE a thread of its
own answers what runs beside steps: grammars to compile.
"""

import socket
import sys
import threading
import traceback
from contextlib import suppress
from datetime import timedelta

import msgspec
import torch.distributed as dist

from quire.base.errors import EngineError, QuireError, RequestError
from quire.base.lifeline import die_with_parent
from quire.base.logging import get_logger, setup
from quire.messages.codec import Codec
from quire.messages.frames import receive, send
from quire.messages.rank import (
    Allocate,
    Begin,
    Broken,
    FromRank,
    Loaded,
    Loading,
    Measure,
    Measured,
    Prepare,
    Ready,
    Result,
    Run,
    ToRank,
    Verdict,
)
from quire.messages.wire import FAILED
from quire.parallel.mesh import Mesh
from quire.runner.runner import Runner
from quire.structured.matcher import Vocabulary

STALL_LIMIT = timedelta(minutes=5)
"""How long a rank waits for the others in a collective before it gives up."""

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "rocm": "nccl", "xpu": "xccl"}

log = get_logger("quire.rank")


class RankProcess:
    """Answers the executor, message by message."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.codec: Codec[ToRank] = Codec(ToRank)
        self.runner: Runner | None = None

    def serve(self) -> int:
        """Until the executor closes the socket. Returns the exit code."""
        while (frame := receive(self.channel)) is not None:
            try:
                self._handle(self.codec.decode(frame))
            except Exception as error:
                self._complain(error)
                return 1
        return 0

    def _complain(self, error: Exception) -> None:
        """Tell the executor, which has gone where another rank was faster; what nobody foresaw is logged, too."""
        known = type(error) if isinstance(error, QuireError) else EngineError
        if known is EngineError:
            log.error("%s", traceback.format_exc())
        with suppress(OSError):
            self._answer(Broken(known.__name__, str(error) or type(error).__name__))

    def serve_side(self, side: socket.socket) -> None:
        """Compile grammars until the executor closes the socket, in a thread of its own. The socket ends with it."""
        with side:
            while (frame := receive(side)) is not None:
                answer = self._prepare(msgspec.msgpack.decode(frame, type=Prepare))
                send(side, msgspec.msgpack.encode(answer))

    def _prepare(self, question: Prepare) -> Verdict:
        assert self.runner is not None, "Begin comes first"
        try:
            vocabulary = Vocabulary(question.tokenizer, question.vocab_size, question.eos)
            self.runner.grammars.prepare(question.wanted, vocabulary, question.unused)
        except RequestError as error:
            return Verdict(error.message, error.code)
        except Exception as error:  # a fault of ours, which may pass: the next grammar is asked for all the same
            log.exception("a grammar could not be compiled")
            return Verdict(str(error) or type(error).__name__, FAILED)
        return Verdict()

    def _handle(self, message: ToRank) -> None:
        if isinstance(message, Begin):
            self._answer(self._begin(message))
            return
        assert self.runner is not None, "Begin comes first"
        if isinstance(message, Measure):
            self._answer(Measured(self.runner.measure()))
        elif isinstance(message, Allocate):
            self.runner.allocate(message.layout)
            self.runner.record()
            self._answer(Ready())
        elif isinstance(message, Run):
            step = self.runner.launch(message.plan)
            if self.runner.mesh.rank == 0:
                self._answer(Result(step.result()))

    def _begin(self, begin: Begin) -> Loaded:
        backend = BACKENDS[begin.spec.platform.name]
        dist.init_process_group(
            backend, init_method=begin.rendezvous, rank=begin.rank, world_size=begin.size, timeout=STALL_LIMIT
        )
        self.runner = Runner(begin.spec, Mesh(begin.rank, begin.size))
        tells = begin.rank == 0
        self.runner.load(lambda done, total: self._answer(Loading(done, total)) if tells else None)
        return Loaded(self.runner.build.provider_names())

    def _answer(self, message: FromRank) -> None:
        send(self.channel, self.codec.encode(message))


def main() -> int:
    """Serve on the inherited socket."""
    if sys.argv[3:]:
        die_with_parent()
    setup()
    side = socket.socket(fileno=int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        rank = RankProcess(channel)
        threading.Thread(target=rank.serve_side, args=(side,), daemon=True).start()
        code = rank.serve()
    if dist.is_initialized():
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
