"""Text workers: what they answer, and what becomes of a template that hangs or eats the memory."""

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from quire.base.errors import RequestError
from quire.base.interpreter import python
from quire.messages.codec import Codec
from quire.messages.frames import send
from quire.messages.text import Encode, Setup, ToWorker
from quire.server.errors import ApiError
from quire.server.text import pool as pool_module
from quire.server.text import texts as texts_module
from quire.server.text.handler import MANY_IDS, JobHandler
from quire.server.text.pool import WORKERS, TextPool
from quire.server.text.texts import Run, Texts, in_threads
from quire.tokenizer.tokenizer import Tokenizer
from tests.chat.samples import HANGING
from tests.server.fake_engine import byte_tokenizer, byte_tokens
from tests.waiting import HANG_S

HI = [{"role": "user", "content": "hi"}]
HOSTILE = (
    "{% if messages[0].content == 'hang' %}" + HANGING + "{% elif messages[0].content == 'eat' %}"
    "{{ 'x' | center(10 ** 11) }}{% else %}{{ messages[0].content }}{% endif %}"
)


@asynccontextmanager
async def pooled(folder: Path) -> AsyncIterator[Texts]:
    byte_tokens().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    async with TextPool(Setup(str(folder), HOSTILE, "warning")) as pool:
        yield Texts(pool.run, Tokenizer.load(folder))


def run(folder: Path, play: Callable[[Texts], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with pooled(folder) as texts:
            await play(texts)

    asyncio.run(whole())
    assert not workers(), "they end with their pool"


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
            if "quire.server.text.worker" in child.cmdline():
                found.append(child)
    return found


async def staffed(texts: Texts) -> list[psutil.Process]:
    """The workers, once all of them wait for jobs."""
    pool = texts._run.__self__
    while pool._idle.qsize() < WORKERS:
        await asyncio.sleep(0.05)
    return workers()


async def check_answers(texts: Texts) -> None:
    """Long and short, the answers are the tokenizer's own."""
    tokenizer = byte_tokenizer()
    for text in ("short", "wörld 😀 <eos> " * 3000):
        assert await texts.encode(Encode([text, "b"])) == [tokenizer.encode(text), tokenizer.encode("b")]
        assert await texts.encode(Encode([text], plain=True)) == [tokenizer.encode_plain(text)]
        assert await texts.encode(Encode([text], within=3)) == [tokenizer.encode_within(text, 3)]
        pair, second = tokenizer.encode_pair(text, "b")
        assert await texts.encode_pairs([(text, "b")]) == ([pair], [second])
        assert await texts.decode(tokenizer.encode(text)) == text
    assert await texts.parse([b'{"a": ', b"[1, null]}"]) == {"a": [1, None]}
    many = list(range(-5, 2 * MANY_IDS))
    for odd in ([], [True], [1.0], [None], [1 << 31], ["1"]):
        # Types and values are those that were sent, however the list travels.
        body = {"ids": [*many, *odd], "b": many[:3]}
        assert repr(sorted((await texts.parse([json.dumps(body).encode()])).items())) == repr(sorted(body.items()))
    with pytest.raises(RequestError) as refused:
        await texts.parse([b'{"a": 1, "a": 2}'])
    assert (refused.value.code, refused.value.param) == ("duplicate_key", "a")


@pytest.mark.plain
@pytest.mark.parametrize("memory_kib", ["unlimited", "1500000"])
def test_a_worker_whose_front_end_has_gone_ends_without_a_word(memory_kib: str, tmp_path: Path) -> None:
    byte_tokens().save(str(tmp_path / "tokenizer.json"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*python(), "-m", "quire.server.text.worker", str(theirs.fileno())]
        worker = subprocess.Popen(
            ["sh", "-c", f'ulimit -v {memory_kib} && exec "$@"', "", *command],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        send(ours, Codec(ToWorker).encode(Setup(str(tmp_path), None, "warning")))
    assert worker.communicate(timeout=HANG_S) == (None, b"")
    assert worker.returncode == 0


@pytest.mark.plain
def test_what_does_not_fit_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = byte_tokenizer(), []
    texts = Texts(in_threads(JobHandler(tokenizer, None)), tokenizer)

    def fits(tokens: int) -> None:
        seen.append(tokens)
        raise RequestError("too long", "prompt")

    monkeypatch.setattr(texts_module, "_unpacked", None)
    with pytest.raises(RequestError):
        asyncio.run(texts.encode(Encode(["a" * 5000]), fits))
    assert seen == [len(tokenizer.encode("a" * 5000))]


@pytest.mark.plain
def test_threads_answer_as_workers_do() -> None:
    tokenizer = byte_tokenizer()
    run: Run = in_threads(JobHandler(tokenizer, None))
    asyncio.run(check_answers(Texts(run, tokenizer)))


@pytest.mark.multi
def test_workers_answer(tmp_path: Path) -> None:
    async def play(texts: Texts) -> None:
        await check_answers(texts)
        assert await texts.render(HI, {}) == byte_tokenizer().encode("hi")
        with pytest.raises(RequestError, match="beyond 64 bits"):
            await texts.parse([b'{"seed": 1', b"0" * 30, b"}"])
        for _ in range(WORKERS + 1):
            with pytest.raises(RequestError, match="beyond 64 bits"):
                await texts.render(HI, {"most": 10**30})
        assert await texts.render(HI, {}) == byte_tokenizer().encode("hi"), "no worker was lost"

    run(tmp_path, play)


@pytest.mark.multi
def test_a_template_that_hangs_or_eats_is_stopped_and_others_go_on(tmp_path: Path) -> None:
    async def play(texts: Texts) -> None:
        before = await staffed(texts)
        hanging = asyncio.create_task(texts.render([{"role": "user", "content": "hang"}], {}))
        assert await texts.render(HI, {}) == byte_tokenizer().encode("hi")
        with pytest.raises(RequestError) as stopped:
            await hanging
        assert (stopped.value.param, stopped.value.code) == ("chat_template", "template_timeout")
        with pytest.raises(RequestError) as eaten:
            await texts.render([{"role": "user", "content": "eat"}], {})
        assert eaten.value.code == "template_error"
        assert await texts.render(HI, {}) == byte_tokenizer().encode("hi")
        assert {one.pid for one in await staffed(texts)} != {one.pid for one in before}, "another one has begun"

    run(tmp_path, play)


@pytest.mark.multi
def test_workers_that_are_killed_while_idle_are_nobodys_error(tmp_path: Path) -> None:
    async def play(texts: Texts) -> None:
        for worker in await staffed(texts):
            worker.kill()
        while workers():
            await asyncio.sleep(0.05)
        assert await texts.render(HI, {}) == byte_tokenizer().encode("hi")

    run(tmp_path, play)


@pytest.mark.multi
def test_a_job_goes_on_when_its_client_has_left_and_nobody_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "RENDER_S", 10 * HANG_S)

    async def play(texts: Texts) -> None:
        before = await staffed(texts)
        for worker in before:
            worker.suspend()  # as if it had much to do
        both = [asyncio.create_task(texts.render(HI, {})) for _ in range(WORKERS)]
        await asyncio.sleep(0)
        monkeypatch.setattr(pool_module, "PATIENCE_S", 0.5)
        with pytest.raises(ApiError) as full:
            await texts.render(HI, {})
        assert (full.value.status, full.value.code) == (503, "queue_full")
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        for worker in before:
            worker.resume()
        assert {one.pid for one in await staffed(texts)} == {one.pid for one in before}, "none was stopped for it"

    run(tmp_path, play)


@pytest.mark.multi
def test_nobody_waits_for_ever_for_a_worker_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(texts: Texts) -> None:
        before = await staffed(texts)
        monkeypatch.setattr(pool_module, "PATIENCE_S", 0.5)
        monkeypatch.setattr(pool_module, "AGAIN_S", 60.0)
        monkeypatch.setattr(pool_module, "python", lambda: ["/nowhere/python"])
        for worker in before:
            worker.kill()
        for _ in range(2):
            with pytest.raises(ApiError) as refused:
                await texts.render(HI, {})
            assert (refused.value.status, refused.value.code) == (503, "queue_full")

    run(tmp_path, play)
