"""What serving does to the machine, by Python's audit events: nothing, whatever clients send and models answer."""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quire.chat.template import ChatTemplate
from tests.package.test_source import BANNED_MODULES
from tests.server.cases import ALL, COMPLETIONS, MODEL, TOOL, chat
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

FORBIDDEN = ("exec", "compile", "os.", "subprocess.", "shutil.", "socket.connect", "socket.bind", "ctypes.", "open")
"""Running code, other programs, files, and connections that are not a client's."""

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "__import__(\'os\').system(\'id\')"}}\n</tool_call>'
TEMPLATE = "{#- <tool_call> -#}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools }}"


class Auditor:
    """Notes events, but those of some threads. Hooks stay for ever, so it is one for all."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        self.others: set[int] = set()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.events is None or threading.get_ident() in self.others:
            return
        unpickles = event == "import" and str(args[0]).split(".")[0] in BANNED_MODULES
        if unpickles or event.startswith(FORBIDDEN):
            self.events.append(f"{event} {str(args)[:200]}")


AUDITOR = Auditor()


def living_threads() -> set[int]:
    """All that there are, also those that Python's `threading` has not begun."""
    return set(sys._current_frames())


@contextmanager
def audited(others: set[int]) -> Iterator[list[str]]:
    """What all threads do but these; nothing that other tests have left is collected meanwhile."""
    gc.collect()
    AUDITOR.others = others
    AUDITOR.events = events = []
    try:
        yield events
    finally:
        AUDITOR.events = None


def test_requests_run_no_code_open_no_file_and_call_nobody() -> None:
    others = living_threads()
    engine = FakeEngine(lambda prompt, index: [*engine.tokenizer.encode(CALL), 256])
    template = ChatTemplate(TEMPLATE, engine.tokenizer)
    good = [
        chat("tools", status=200, tools=[TOOL], max_tokens=150),
        chat("a stream of tools", status=200, tools=[TOOL], max_tokens=150, stream=True),
        chat("long", status=400, messages=[{"role": "user", "content": "x" * 300_000}]),
    ]
    with Serving(engine, template=template) as running, running.http() as http:

        def send() -> None:
            for case in [*ALL, *good]:
                headers = {"Content-Type": "application/json", **case.headers}
                http.post(case.path, content=case.raw, headers=headers)
            for path in ("/live", "/ready", "/metrics", "/v1/models", "/load", "/openapi.json", "/", "/nothing"):
                http.get(path)
            answer = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "a", "max_tokens": 150})
            assert "__import__" in answer.text, "the model does try"

        send()  # what is imported late is imported now
        with audited(others) as events:
            send()
    assert not events, events[:5]


def test_the_auditor_hears() -> None:
    with audited(living_threads()) as events:
        thread = threading.Thread(target=lambda: eval("1 + 1"))
        thread.start()
        thread.join()
    assert events
