"""Serves mixed traffic for long, and looks for what is lost, wrong, left over or growing.

    python benchmarks/soak.py [--minutes 10] [--clients 24] [--plot FILE] [--ledger FILE]

Chats, completions, tools, JSON by schema, several answers at once; a tenth of the clients hang up, two in a hundred ask
nonsense. The model is the toy, so one request in a hundred is asked again alone when all is over, and must get the same
answer to the last token. Fails if anything else than 200 or the due 4xx was answered, if a request took longer than a
minute, or if pages or descriptors are left. Memory is reported, with a line fitted to the last third of the requests.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from lib import ledger
from lib.toy_server import MODEL, toy_server

HUNG_S = 60.0
LOOK_S = 5.0
WARM = 2 / 3
"""Share of the requests after which memory is compared: an hour's first 140,000 fill what is kept."""
FLAGS = ("--num-gpu-blocks-override", "600", "--block-size", "16", "--max-num-seqs", "16", "--api-server-count", "2")
FLAGS += ("--log-level", "warning", "--disable-access-log")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
NONSENSE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": 9}),
    ("/v1/chat/completions", {"messages": [{"role": "nobody", "content": "x"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}),
    ("/v1/completions", {"prompt": "x" * 2000}),
    ("/v1/completions", {"prompt": [100_000]}),
    ("/v1/completions", {"prompt": "x", "n": 10_000}),
    ("/v1/completions", {"prompt": "x", "structured_outputs": {"regex": "(" * 50}}),
    ("/v1/completions", {"prompt": "x", "model": "another"}),
    ("/v1/nowhere", {"prompt": "x"}),
]

Ask = tuple[str, dict[str, Any]]
Looks = list[tuple[float, int, dict[str, int]]]
"""(seconds, requests so far, resident bytes of each process by its name), one after the other."""


@dataclass
class Tally:
    """What has been seen.

    Attributes:
        kept: requests and their answers, to be asked again.
        sizes: of processes, now and then.
    """

    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    kept: list[tuple[Ask, Any]] = field(default_factory=list)
    sizes: Looks = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many have ended."""
        return self.answered.total()


def make_ask(rng: random.Random) -> Ask:
    """One of the good requests."""
    words = " ".join(rng.choice(["red", "old", "house", "sea", "why", "0x1", "é😀"]) for _ in range(rng.randint(1, 40)))
    beginning = rng.choice(["", "", "You are a helpful assistant that says little. " * 3])
    text = (beginning + words)[:300]
    base: dict[str, Any] = {"model": MODEL, "max_tokens": rng.choice([1, 4, 12, 40]), "seed": rng.randrange(1 << 31)}
    base |= rng.choice([{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40}])
    base |= rng.choice([{}, {}, {"stop": ["a", "zz"]}, {"n": rng.randint(2, 4)}, {"logit_bias": {"65": 5}}])
    match rng.choice(["chat", "chat", "completion", "completion", "tools", "json"]):
        case "completion":
            return "/v1/completions", {**base, "prompt": text, "logprobs": rng.choice([None, None, 2])}
        case "tools":
            chosen = rng.choice(["auto", "required"])
            return "/v1/chat/completions", {**_chat(base, text), "tools": [TOOL], "tool_choice": chosen}
        case "json":
            form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
            return "/v1/chat/completions", {**_chat(base, text), "response_format": form}
        case _:
            return "/v1/chat/completions", _chat(base, text)


def _chat(base: dict[str, Any], text: str) -> dict[str, Any]:
    return {**base, "messages": [{"role": "user", "content": text}]}


async def client(http: httpx.AsyncClient, rng: random.Random, tally: Tally, until: float) -> None:
    """Ask one thing after the other."""
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            async with asyncio.timeout(HUNG_S):
                tally.answered[await _one(http, rng, tally)] += 1
        except Exception as error:
            tally.answered["wrong"] += 1
            tally.wrong.append(f"{type(error).__name__}: {error}"[:300])
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)


async def _one(http: httpx.AsyncClient, rng: random.Random, tally: Tally) -> str:
    if rng.random() < 0.02:
        path, body = rng.choice(NONSENSE)
        answer = await http.post(path, json={"model": MODEL, **body})
        assert 400 <= answer.status_code < 500 and "error" in answer.json(), (answer.status_code, body, answer.text)
        return "refused"
    path, body = make_ask(rng)
    leaves = rng.random() < 0.1
    if leaves or rng.random() < 0.5:
        return await _stream(http, path, body, rng.randint(0, 8) if leaves else None)
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, (answer.status_code, body, answer.text)
    if rng.random() < 0.02:  # of half of all
        tally.kept.append(((path, body), said(answer)))
    return "whole"


async def _stream(http: httpx.AsyncClient, path: str, body: dict[str, Any], leave_after: int | None) -> str:
    ends, events = 0, 0
    async with http.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, (answer.status_code, body)
        async for line in _lines(answer):
            if not line.startswith(b"data: "):
                continue
            if leave_after is not None and events >= leave_after:
                return "left"
            events += 1
            if line == b"data: [DONE]":
                assert ends == body.get("n", 1), f"{ends} of {body.get('n', 1)} answers ended: {body}"
                return "streamed"
            event = json.loads(line[6:])
            assert "error" not in event, event
            ends += sum(choice["finish_reason"] is not None for choice in event["choices"])
    raise AssertionError("a stream ended without [DONE]")


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Lines of an event stream. httpx's own also end at U+0085 and the like, which JSON has within strings."""
    rest = b""
    async for data in answer.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


def said(answer: httpx.Response) -> Any:
    """What an answer says, less what differs each time: its ids, and how much was cached."""
    choices = answer.json()["choices"]
    for choice in choices:
        for call in (choice.get("message") or {}).get("tool_calls") or ():
            call.pop("id")
    return choices


async def watch(supervisor: psutil.Process, tally: Tally, until: float) -> None:
    """Note the sizes of processes."""
    began = time.monotonic()
    while time.monotonic() < until:
        tally.sizes.append((time.monotonic() - began, tally.requests, sizes(supervisor)))
        await asyncio.sleep(LOOK_S)


def connected(url: str) -> httpx.AsyncClient:
    """A client with as many connections as it likes."""
    return httpx.AsyncClient(base_url=url, timeout=HUNG_S, limits=httpx.Limits(max_connections=None))


def descriptors(supervisor: psutil.Process) -> dict[str, int]:
    """Open files and sockets of each process."""
    return {name: process.num_fds() for name, process in family(supervisor).items()}


def family(supervisor: psutil.Process) -> dict[str, psutil.Process]:
    """The server's processes by name."""
    named = {"supervisor": supervisor}
    for child in supervisor.children(recursive=True):
        module = next((word for word in child.cmdline() if word.startswith("quire.")), "other")
        named[f"{module.rpartition('.')[0].rpartition('.')[2]} {module.rpartition('.')[2]} {child.pid}"] = child
    return named


def sizes(supervisor: psutil.Process) -> dict[str, int]:
    """Resident bytes."""
    return {name: process.memory_info().rss for name, process in family(supervisor).items()}


def slope(looks: Looks, name: str, warm: float) -> float:
    """MiB that a process grows in a million requests, by least squares over all but the first `warm` (a share)."""
    points = [(count, size[name]) for _, count, size in looks if name in size and count > warm * looks[-1][1]]
    if len(points) < 3:
        return 0.0
    mean_x, mean_y = (sum(each) / len(points) for each in zip(*points, strict=True))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return above / below * 1e6 / 2**20


async def again(http: httpx.AsyncClient, tally: Tally) -> int:
    """Ask what was kept alone; how many answers differ."""
    different = 0
    for (path, body), before in tally.kept:
        now = said(await http.post(path, json=body))
        if now != before:
            different += 1
            tally.wrong.append(f"alone it says {json.dumps(now)[:200]}, in company {json.dumps(before)[:200]}: {body}")
    return different


async def settled(http: httpx.AsyncClient) -> dict[str, Any]:
    """The load when nothing runs any more; waits for five seconds."""
    load: dict[str, Any] = {}
    for _ in range(50):
        load = (await http.get("/load")).json()
        if not (load["running"] or load["waiting"] or load["kv_cache_usage"] or load["server_load"]):
            break
        await asyncio.sleep(0.1)
    return load


async def soak(url: str, supervisor: psutil.Process, seconds: float, clients: int) -> dict[str, float]:
    """Load the server; the figures. Exits if something was wrong."""
    tally = Tally()
    async with connected(url) as http:
        warm = time.monotonic() + min(30.0, seconds / 4)
        await asyncio.gather(*(client(http, random.Random(-n), Tally(), warm) for n in range(clients)))
        await settled(http)
    await asyncio.sleep(1.0)
    before = descriptors(supervisor)
    async with connected(url) as http:
        began, until = time.monotonic(), time.monotonic() + seconds
        watcher = asyncio.create_task(watch(supervisor, tally, until))
        await asyncio.gather(*(client(http, random.Random(n), tally, until) for n in range(clients)))
        took = time.monotonic() - began
        await watcher
        load = await settled(http)
        different = await again(http, tally)
        load = await settled(http)
        left = {name: load[name] for name in ("running", "waiting", "kv_cache_usage", "server_load")}
    await asyncio.sleep(1.0)
    after = descriptors(supervisor)
    if before.keys() != after.keys():
        tally.wrong.append("a process has died meanwhile")
    if any(left.values()):
        tally.wrong.append(f"left over: {left}")
    more = max(count - before.get(name, 0) for name, count in after.items())
    if more > 2:
        tally.wrong.append(f"descriptors are left: {before} became {after}")
    print("\n".join([*tally.wrong[:20], str(dict(tally.answered)), str(after)]), file=sys.stderr)
    figures = {
        "requests": tally.requests,
        "requests_per_second": tally.requests / took,
        "wrong": len(tally.wrong),
        "slowest_s": tally.slowest_s,
        "compared_alone": len(tally.kept),
        "different_alone": different,
        "descriptors_left": more,
    }
    return figures | slopes(tally.sizes, WARM) | {"sizes": tally.sizes}  # type: ignore[dict-item]


def slopes(looks: Looks, warm: float) -> dict[str, float]:
    """The slope of each kind of process, of several the largest."""
    found: dict[str, float] = {}
    for name in looks[-1][2]:
        kind = f"mib_per_million_{name.rpartition(' ')[0] or name}".replace(" ", "_")
        found[kind] = max(found.get(kind, -1e9), slope(looks, name, warm))
    return found


def plot(sizes: Looks, file: str) -> None:
    """Draw the memory of each process over requests."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in sizes[-1][2]:
        points = [(count / 1000, size[name] / 2**20) for _, count, size in sizes if name in size]
        axes.plot(*zip(*points, strict=True), label=name.rpartition(" ")[0] or name)
    axes.set(xlabel="thousand requests", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)


def main() -> int:
    """Soak; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--plot")
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, toy_server(Path(folder) / "toy", *FLAGS) as (url, supervisor):
        figures: dict[str, Any] = asyncio.run(soak(url, supervisor, 60 * given.minutes, given.clients))
    sizes = figures.pop("sizes")
    if given.plot:
        plot(sizes, given.plot)
    for name, value in figures.items():
        print(f"{name:40} {value:.4g}")
    if given.ledger:
        line = {"commit": ledger.commit(), "machine": ledger.machine(), "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "soak", "minutes": given.minutes, **figures})
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
