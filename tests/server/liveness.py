"""The oracle of liveness: what must hold on a real server, over a real engine, while others misbehave.

`toy_server` serves the toy model, whose next token is a hash of all that it reads back, so any harm to a neighbour's
pages, rows or masks shows in the canary's tokens. `watched` keeps a greedy canary streaming, asks /ready all the time,
and looks afterwards for pages, descriptors and processes that are not as they were.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.acceptance.serving import Served, serve
from tests.chat.samples import HANGING
from tests.engine.toy import make_toy, oracle
from tests.server.cases import MODEL
from tests.server.fake_engine import EMBEDDING_ROWS, byte_tokens
from tests.server.plain_bytes import talk
from tests.waiting import HANG_S, wait_for

CONTEXT = 256
CANARY_TOKENS = 120
GAUGES = re.compile(
    rb"^quire:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc){.*} (.*)$", re.MULTILINE
)
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HELPERS = {"quire.structured.checker_process", "quire.server.text.worker"}
"""Whoever is stopped for what it is given, and begun again."""

TEMPLATE = (
    "{#- <tool_call> -#}{%- if messages[0].content == 'hang' -%}" + HANGING + "{%- endif -%}"
    "{%- for message in messages -%}{{ message.role }}: {{ message.content or '' }}\n{% endfor %}"
    "{%- if add_generation_prompt -%}assistant:{%- endif -%}"
)


@contextlib.contextmanager
def toy_server(folder: Path, *flags: str) -> Iterator[Served]:
    """A server like that of the fake engine: the same name, vocabulary, context and kind of template."""
    make_toy(folder, EMBEDDING_ROWS, context=CONTEXT)
    byte_tokens().save(str(folder / "tokenizer.json"))
    words = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    pages = ("--num-gpu-blocks-override", "400", "--block-size", "16", "--max-num-seqs", "16")
    with serve(
        "--model", str(folder), "--served-model-name", MODEL, *pages, "--log-level", "warning", *flags
    ) as served:
        yield served


@dataclass
class Watched:
    """What was seen while the watch lasted."""

    streams: int = 0
    wrong: list[str] = field(default_factory=list)
    not_ready: list[int] = field(default_factory=list)


@contextlib.contextmanager
def watched(served: Served) -> Iterator[Watched]:
    """Keep the canary going while the body of the `with` runs; afterwards everything must be as it was before."""
    ask(served, {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": ["ab"]}})  # the checker is there
    before = settled(served)
    found, stop = Watched(), threading.Event()
    threads = [threading.Thread(target=work, args=(served, found, stop)) for work in (_sing, _probe)]
    for thread in threads:
        thread.start()
    try:
        yield found
        sung = found.streams
        wait_for(lambda: found.streams > sung or found.wrong)
    finally:
        stop.set()
        for thread in threads:
            thread.join(2 * HANG_S)
    assert not found.wrong, found.wrong[:3]
    assert not found.not_ready, found.not_ready[:3]
    wait_for(lambda: settled(served) == before, said=lambda: f"{before} became {settled(served)}")


def settled(served: Served) -> dict[int, int]:
    """Descriptors of each process, but of the helpers, who come and go, once no page is used and no client connected.

    The server closes the connections by which it is asked, so that none of them is counted.
    """
    wait_for(lambda: is_idle(talk(served, METRICS)), said=lambda: "the engine is not idle")
    return {process.pid: process.num_fds() for process in family(served)}


def is_idle(metrics: bytes) -> bool:
    """Whether an answer to METRICS tells of no sequence and no page in use."""
    gauges = GAUGES.findall(metrics)
    return len(gauges) == 3 and not any(map(float, gauges))


def family(served: Served) -> list[psutil.Process]:
    """The server's processes, without helpers."""
    first = psutil.Process(served.process.pid)
    found = []
    for process in (first, *first.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not HELPERS & set(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ask(served: Served, body: dict[str, object], path: str = "/v1/completions") -> httpx.Response:
    """One request of a client of its own."""
    return httpx.post(f"{served.url}{path}", json={"model": MODEL, **body}, timeout=2 * HANG_S)


def sing(client: httpx.Client, prompt: list[int]) -> list[int]:
    """The tokens of one greedy stream."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": CANARY_TOKENS, "temperature": 0, "ignore_eos": True}
    tokens: list[int] = []
    with client.stream("POST", "/v1/completions", json={**body, "stream": True, "return_token_ids": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    tokens += choice["token_ids"]
    return tokens


def _sing(served: Served, found: Watched, stop: threading.Event) -> None:
    with httpx.Client(base_url=served.url, timeout=HANG_S) as client:
        while not stop.is_set():
            prompt = [found.streams % 250, 7, 8]
            try:
                tokens = sing(client, prompt)
            except Exception as error:
                found.wrong.append(repr(error))
                return
            if tokens != oracle(prompt, CANARY_TOKENS, EMBEDDING_ROWS):
                found.wrong.append(f"{prompt}: {tokens}")
            found.streams += 1


def _probe(served: Served, found: Watched, stop: threading.Event) -> None:
    with httpx.Client(base_url=served.url, timeout=HANG_S) as client:
        while not stop.wait(0.05):
            status = client.get("/ready").status_code
            if status != 200:
                found.not_ready.append(status)
