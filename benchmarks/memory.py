"""Serves a million small requests, and looks how the memory of the server's processes grows.

    python benchmarks/memory.py [--requests 1000000] [--minutes M] [--fronts 1] [--plot FILE] [--ledger FILE]

Completions and chats of a few words on the toy model, whole and streamed, answers of up to four tokens; one in twenty
hangs up, one in fifty is nonsense. Clients are bare sockets, so that most of the time is the server's. A line is fitted
to each process over the second half of the requests. `soak.py` has the other mixture, and looks at answers.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from lib import ledger
from lib.toy_server import MODEL, toy_server
from soak import Looks, plot, sizes, slopes

CLIENTS = 64
LOOK_S = 2.0
WARM = 0.5
"""Share of the requests after which memory is compared."""
FLAGS = ("--num-gpu-blocks-override", "4000", "--block-size", "16", "--max-num-seqs", "256", "--log-level", "error")
FLAGS += ("--disable-access-log",)
WORDS = ("red", "old", "house", "sea", "why", "0x1")


def make_ask(rng: random.Random) -> bytes:
    """A request as it is sent."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
    body = {"model": MODEL, "max_tokens": rng.choice((1, 1, 2, 4)), "temperature": rng.choice((0, 1.0))}
    body |= {"seed": rng.randrange(1 << 31), "stream": rng.random() < 0.5}
    chat = rng.random() < 0.3
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    if rng.random() < 0.02:
        body["temperature"] = 9
    raw = json.dumps(body).encode()
    path = "/v1/chat/completions" if chat else "/v1/completions"
    lines = f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(raw)}"
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


async def read_answer(reader: asyncio.StreamReader) -> str:
    """Read all of an answer; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, length, rest = head.partition(b"content-length:")
    if length:
        await reader.readexactly(int(rest.split(b"\r\n")[0]))
        return head[9:12].decode()
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()
    return head[9:12].decode()


class Load:
    """Clients that ask until there were enough requests.

    Args:
        port: of the server.
        requests: how many there are to be.
        until: when it ends in any case.
    """

    def __init__(self, port: int, requests: int, until: float) -> None:
        self._port = port
        self._requests = requests
        self._until = until
        self.asked = 0
        self.answered: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Whether nothing more is asked."""
        return self.asked >= self._requests or time.monotonic() > self._until

    async def client(self, number: int) -> None:
        """Ask one thing after the other, on one connection as long as it lasts."""
        rng = random.Random(number)
        while not self.over:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            leaves = False
            while not (leaves or self.over):
                self.asked += 1
                writer.write(make_ask(rng))
                leaves = rng.random() < 0.05
                if leaves:
                    await asyncio.sleep(rng.choice((0.0, 0.003)))
                    self.answered["left"] += 1
                else:
                    self.answered[await read_answer(reader)] += 1
            writer.close()

    async def run(self, supervisor: psutil.Process) -> Looks:
        """Ask, and look at the processes."""
        began, looks = time.monotonic(), []

        async def watch() -> None:
            while not self.over:
                looks.append((time.monotonic() - began, self.asked, sizes(supervisor)))
                await asyncio.sleep(LOOK_S)

        await asyncio.gather(watch(), *(self.client(number) for number in range(CLIENTS)))
        return looks


def main() -> int:
    """Measure; 1 if an answer was neither 200 nor 400."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--fronts", type=int, default=1)
    parser.add_argument("--plot")
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    flags = (*FLAGS, "--api-server-count", str(given.fronts))
    with tempfile.TemporaryDirectory() as folder, toy_server(Path(folder) / "toy", *flags) as (url, supervisor):
        load = Load(int(url.rpartition(":")[2]), given.requests, time.monotonic() + 60 * given.minutes)
        looks = asyncio.run(load.run(supervisor))
    print(dict(load.answered), file=sys.stderr)
    wrong = load.asked - sum(load.answered[kind] for kind in ("200", "400", "left"))
    took = looks[-1][0]
    figures = {"requests": load.asked, "requests_per_second": looks[-1][1] / took, "wrong": wrong}
    figures |= slopes(looks, WARM)
    for name, value in figures.items():
        print(f"{name:40} {value:.4g}")
    if given.plot:
        plot(looks, given.plot)
    if given.ledger:
        line = {"commit": ledger.commit(), "machine": ledger.machine(), "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "memory", **figures})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
