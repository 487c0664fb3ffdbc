"""`AsyncLLM` with a real core process on the toy model: streams, cancels, refusals and the death of the core."""

import asyncio
import os
import random
import signal

import psutil
import pytest

from quire import AsyncLLM, SamplingParams
from quire.base.errors import CheckpointError, EngineDeadError, EngineError, RequestError
from quire.messages.params import RequestOutputKind
from tests.engine.toy import make_toy, oracle
from tests.waiting import HANG_S

pytestmark = pytest.mark.multi

LONG = 20_000
"""More tokens than a core generates while this process may stand still."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"), context=2 * LONG)


async def bounded(scenario):
    """A hang is a failure."""
    async with asyncio.timeout(3 * HANG_S):
        return await scenario()


def run(scenario):
    return asyncio.run(bounded(scenario))


@pytest.fixture(scope="module")
def served(toy):
    """An engine that tests leave as they found it, and what runs a scenario beside it."""
    with asyncio.Runner() as runner:
        engine = runner.run(start(toy, max_num_seqs=16))
        yield engine, lambda scenario: runner.run(bounded(scenario))
        runner.run(engine.close())


def start(folder, **settings):
    return AsyncLLM.start(model=str(folder), kv_cache_memory_bytes=1 << 20, block_size=8, **settings)


async def tokens_of(engine, prompt, count, **params):
    sampling = SamplingParams(
        max_tokens=count, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA, **params
    )
    seen = []
    async for output in engine.generate(prompt, sampling):
        seen += output.outputs[0].token_ids
    return seen


async def settled(engine):
    """Wait until the core says that nothing runs."""
    while engine.stats.running or engine.stats.waiting or engine.stats.kv_usage:
        await asyncio.sleep(0.02)


def test_streams_cancels_and_refusals_leave_nothing_behind(served):
    engine, run_beside = served

    async def scenario():
        rng = random.Random(0)
        prompts = [[rng.randrange(400) for _ in range(rng.randint(1, 80))] for _ in range(64)]

        async def one(i):
            if i % 3:
                assert await tokens_of(engine, prompts[i], 40) == oracle(prompts[i], 40)
                return
            task = asyncio.create_task(tokens_of(engine, prompts[i], 150))
            await asyncio.sleep(rng.random() * 0.5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(one(i) for i in range(64)))
        with pytest.raises(RequestError, match="maximum context length"):
            await tokens_of(engine, [1] * 3 * LONG, 4)
        with pytest.raises(RequestError):
            await tokens_of(engine, [-1], 4)
        await settled(engine)
        assert engine.unfinished == 0

    run_beside(scenario)


def test_abort_tells_the_one_who_iterates(served):
    engine, run_beside = served

    async def scenario():
        outputs = []

        async def iterate():
            async for output in engine.generate([1, 2], SamplingParams(max_tokens=LONG, ignore_eos=True), "mine"):
                outputs.append(output)

        task = asyncio.create_task(iterate())
        while not outputs:
            await asyncio.sleep(0.01)
        await engine.abort("mine")
        await task
        assert outputs[-1].finished
        assert outputs[-1].outputs[0].finish_reason == "abort"
        await settled(engine)

    run_beside(scenario)


def test_death_of_the_core_is_an_error_and_not_a_hang(toy):
    async def scenario():
        engine = await start(toy)
        streams = [asyncio.create_task(tokens_of(engine, [i], LONG)) for i in range(8)]
        while not engine.stats.running:
            await asyncio.sleep(0.01)
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.gather(*streams, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert engine.dead is not None and "signal 9 (as the system does where memory" in engine.dead
        with pytest.raises(EngineDeadError):
            await tokens_of(engine, [1], 1)
        await engine.close()

    run(scenario)


def test_a_core_that_cannot_start_says_why(toy, tmp_path):
    async def too_big():
        await start(toy, max_model_len=10_000_000)

    with pytest.raises(EngineError, match="max_model_len"):
        run(too_big)

    async def missing():
        await start(tmp_path / "nowhere")

    with pytest.raises(CheckpointError):
        run(missing)


def test_an_idle_core_costs_no_cpu(served):
    engine, run_beside = served

    async def scenario():
        await tokens_of(engine, [1, 2], 5)
        await settled(engine)
        core = psutil.Process(engine.pid)
        before = sum(core.cpu_times()[:2])
        await asyncio.sleep(3)
        return sum(core.cpu_times()[:2]) - before

    # Somebody else may have taken the core's processor, and the system may have counted that: one of four says less.
    assert any(run_beside(scenario) < 0.03 for _ in range(4)), "more than 1 % of a core"
