"""An engine on a GPU is killed under load, with recorded steps: another one serves, memory and pages are as before."""

import re
import threading

import httpx
import pytest

from tests.acceptance.serving import Served, serve
from tests.waiting import wait_for

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

READY_S = 120.0
FREED_S = 5.0
NOISE_BYTES = 64 << 20
"""What a process that has ended may leave for a while."""
EXACT_BYTES = 4 << 20
"""The driver gives memory by pieces of 2 MiB."""
NOISE_PAGES = 1
"""What the driver keeps for itself differs by 64 KiB from process to process."""
ROUNDS = 2


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


def usage(served: Served) -> float:
    """The share of the engine's pages that are in use."""
    return float(httpx.get(f"{served.url}/load").json()["kv_cache_usage"])


def pages(served: Served) -> int:
    """How many pages the engine has."""
    found = re.search(r'num_gpu_blocks="(\d+)"', httpx.get(f"{served.url}/metrics").text)
    assert found is not None
    return int(found[1])


def test_killed_under_load_and_everything_is_as_before() -> None:
    before_any = taken()
    with serve("--device", "cuda", "--dtype", "float32", "--gpu-memory-utilization", "0.3") as served:
        expected, held, had = said(served), taken(), pages(served)
        assert held > before_any + NOISE_BYTES
        for round in range(ROUNDS):
            answers: list[httpx.Response] = []
            threads = [
                threading.Thread(target=lambda n=n, to=answers: to.append(complete(served, f"{n} and so on", 300)))
                for n in range(48)
            ]
            for thread in threads:
                thread.start()
            wait_for(lambda: httpx.get(f"{served.url}/load").json()["running"] >= 32, READY_S)
            victim = served.engine()
            victim.kill()
            wait_for(lambda: taken() < before_any + NOISE_BYTES, FREED_S)
            wait_for(lambda: httpx.get(f"{served.url}/ready").status_code == 200, READY_S)
            for thread in threads:
                thread.join(READY_S)
            # Nothing had been sent of any of them, so all were begun again.
            assert [answer.status_code for answer in answers] == [200] * len(threads), round
            assert served.engine().pid != victim.pid
            wait_for(lambda: usage(served) == 0, FREED_S)
            assert said(served) == expected
            assert abs(pages(served) - had) <= NOISE_PAGES
            assert abs(taken() - held) <= EXACT_BYTES
    wait_for(lambda: taken() < before_any + NOISE_BYTES, FREED_S)
