"""An engine on a GPU is killed under load, with recorded steps: another one serves, memory and pages are as before."""

import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.acceptance.serving import Served, serve

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

READY_S = 120.0
FREED_S = 5.0
NOISE_BYTES = 64 << 20
"""Contexts of two processes differ by less."""
ROUNDS = 2


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait for `condition`; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "what was waited for did not happen"
        time.sleep(0.05)
    return time.monotonic() - began


def taken() -> int:
    """Bytes of the GPU that are in use, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def complete(served: Served, prompt: str, tokens: int) -> httpx.Response:
    """A greedy completion."""
    body = {"model": "default", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=READY_S)


def said(served: Served) -> list[str]:
    """What a few prompts are answered, one after the other."""
    return [
        complete(served, f"Once upon a time {word}", 40).json()["choices"][0]["text"] for word in ("a", "the", "we")
    ]


def pages(served: Served) -> float:
    """Pages of the engine."""
    return float(httpx.get(f"{served.url}/load").json()["kv_cache_usage"])


def test_killed_under_load_and_everything_is_as_before() -> None:
    before_any = taken()
    with serve("--device", "cuda", "--dtype", "float32", "--gpu-memory-utilization", "0.3") as served:
        expected, held = said(served), taken()
        assert held > before_any + NOISE_BYTES
        for round in range(ROUNDS):
            answers: list[httpx.Response] = []
            threads = [
                threading.Thread(target=lambda n=n, to=answers: to.append(complete(served, f"{n} and so on", 300)))
                for n in range(48)
            ]
            for thread in threads:
                thread.start()
            until(lambda: httpx.get(f"{served.url}/load").json()["running"] >= 32, READY_S)
            victim = served.engine()
            victim.kill()
            until(lambda: taken() < before_any + NOISE_BYTES, FREED_S)
            until(lambda: httpx.get(f"{served.url}/ready").status_code == 200, READY_S)
            for thread in threads:
                thread.join(READY_S)
            # Nothing had been sent of any of them, so all were begun again.
            assert [answer.status_code for answer in answers] == [200] * len(threads), round
            assert served.engine().pid != victim.pid
            until(lambda: pages(served) == 0, FREED_S)
            assert said(served) == expected
            assert abs(taken() - held) < NOISE_BYTES
    until(lambda: taken() < before_any + NOISE_BYTES, FREED_S)
