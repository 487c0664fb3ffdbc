"""The page that tells whether a core moves, read while another process writes it."""

import os
import subprocess
import sys

import pytest

from quire.engine.pulse import Pulse, shared_page
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain

BEATS = """
import sys
from quire.engine.pulse import Pulse
from quire.messages.wire import Stats
pulse, step = Pulse(int(sys.argv[1])), 0
while True:
    step += 1
    pulse.beat(Stats(1, 2, 0.5, 3, 4, 5, step, 6))
    if step == 1:
        print("beats", flush=True)
"""


@pytest.fixture(params=["memory", "file"])
def descriptor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A page, also as it is made where Python was built without memfd_create."""
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return shared_page()


def test_nobody_sees_a_number_half_written(descriptor: int) -> None:
    pulse = Pulse(descriptor)
    pulse.reset()
    command = [sys.executable, "-c", BEATS, str(descriptor)]
    with subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            begun, last, reads = pulse.stats, 0, 0
            while reads < 200_000 or last < 1000:
                reads += 1
                # The clock counts from when the machine was started: a place that is empty would be an age ago.
                assert pulse.still_s() < HANG_S
                before, last = last, pulse.stats.steps
                assert before <= last
        finally:
            writer.kill()
    assert (begun.running, begun.waiting, begun.kv_usage, begun.preemptions) == (1, 2, 0.5, 3)
    assert (begun.prefix_queries, begun.prefix_hits, begun.step_tokens) == (4, 5, 6)


class Dies:
    """A page whose writer is killed after its next piece of text."""

    def __init__(self, page: object) -> None:
        self._page = page

    def __setitem__(self, where: slice, text: bytes) -> None:
        self._page[where] = text
        raise KeyboardInterrupt


def test_a_text_that_was_not_written_whole_is_none(descriptor: int) -> None:
    pulse, seen = Pulse(descriptor), Pulse(descriptor)
    pulse.trial("a longer one")
    assert seen.tried == "a longer one"
    pulse._page = Dies(pulse._page)
    with pytest.raises(KeyboardInterrupt):
        pulse.trial("short")
    assert seen.tried == ""
