"""SQLite's way for memory: each allocation of a start, and of a generation, fails once. And nothing grows."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from quire import LLM, SamplingParams
from quire.base.errors import ConfigError, EngineDeadError, EngineError
from tests.engine.toy import make_toy
from tests.waiting import wait_for

pytestmark = pytest.mark.torch

MAKERS = {getattr(torch, name) for name in ("empty", "zeros", "ones", "full", "tensor", "arange", "stack", "cat")}
MAKERS |= {torch.empty_like, torch.zeros_like}
PARAMS = SamplingParams(max_tokens=2, temperature=1.0, seed=1, ignore_eos=True, logprobs=1)


class Fails(TorchFunctionMode):
    """The `which`-th new tensor from now on finds no memory."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.left = which

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in MAKERS:
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError("no memory is left")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], LLM]:
    """Starts an engine of the toy model."""
    folder = make_toy(tmp_path / "model")
    return lambda: LLM(str(folder), num_gpu_blocks_override=20, max_num_seqs=2)


def test_every_allocation_of_a_start_fails_once(start: Callable[[], LLM]) -> None:
    start().close()
    threads, which = threading.active_count(), 0
    while True:
        mode = Fails(which)
        try:
            with mode:
                start().close()
        except (torch.OutOfMemoryError, ConfigError) as error:
            assert "memory" in str(error)
            which += 1
        else:
            break
    assert which > 10 and mode.left >= 0
    wait_for(lambda: threading.active_count() <= threads)


def test_every_allocation_of_a_step_fails_once(start: Callable[[], LLM]) -> None:
    start().close()
    threads, which = threading.active_count(), 0
    while True:
        with start() as llm:
            try:
                with Fails(which):
                    llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)
            except EngineDeadError as error:
                assert "no memory is left" in str(error) and "make a new one" in str(error)
                with pytest.raises(EngineError, match="has failed"):
                    llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)
                which += 1
            else:
                break
    assert which > 10
    wait_for(lambda: threading.active_count() <= threads)


def test_requests_leave_no_object(start: Callable[[], LLM]) -> None:
    def objects() -> int:
        for n in range(8):
            llm.generate([[n, k] for k in range(25)], PARAMS, use_tqdm=False)
        gc.collect()
        return len(gc.get_objects())

    with start() as llm:
        objects()
        assert abs(objects() - objects()) < 100, "two hundred requests each"
