"""The shipped model behind `quire serve`, judged by the official OpenAI client and by what is left afterwards."""

import asyncio
import random
import shutil
import signal
import time
from pathlib import Path

import anthropic
import httpx
import openai
import psutil
import pytest

from quire.checkpoint.names import resolve
from tests.acceptance.serving import serve
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.multi

MESSAGES = [{"role": "user", "content": "It was a dark and stormy night."}]
PAGES = ("--num-gpu-blocks-override", "400")


@pytest.fixture(scope="module")
def served():
    with serve(*PAGES) as running:
        yield running


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def open_requests(served) -> float:
    return served.metric("num_requests_running") + served.metric("num_requests_waiting")


def idle(served) -> bool:
    """Whether nothing runs and no page is in use."""
    return not open_requests(served) and not served.metric("kv_cache_usage_perc")


def test_models_and_version(served, client):
    (model,) = client.models.list().data
    assert model.id == "default"
    assert served.get("/version").json() == {"version": __import__("quire").__version__}


def test_plain_and_streamed_say_the_same(client):
    asked = {"model": "default", "messages": MESSAGES, "max_tokens": 24, "temperature": 0.0}
    plain = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert text.strip()
    assert chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == plain.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    assert chunks[-1].usage.completion_tokens <= 24


def test_a_chat_ends_by_itself(client):
    answer = client.chat.completions.create(model="default", messages=MESSAGES, max_tokens=1500, seed=3)
    assert answer.choices[0].finish_reason == "stop"


def test_n_logprobs_and_stop(client):
    answer = client.chat.completions.create(
        model="default", messages=MESSAGES, n=3, max_tokens=8, seed=5, logprobs=True, top_logprobs=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    for choice in answer.choices:
        assert all(len(entry.top_logprobs) == 4 for entry in choice.logprobs.content)
        assert all(entry.logprob <= 0 for entry in choice.logprobs.content)
    full = client.completions.create(model="default", prompt="Once upon a time", max_tokens=40, temperature=0)
    stop = full.choices[0].text[10:14]
    cut = client.completions.create(model="default", prompt="Once upon a time", max_tokens=40, temperature=0, stop=stop)
    assert cut.choices[0].text == full.choices[0].text[: full.choices[0].text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_responses_and_anthropics_messages_say_what_a_chat_says(served, client):
    asked = {"model": "default", "temperature": 0.0}
    chat = client.chat.completions.create(**asked, messages=MESSAGES, max_tokens=24)
    text, prompt_tokens = chat.choices[0].message.content, chat.usage.prompt_tokens
    response = client.responses.create(**asked, input=MESSAGES[0]["content"], max_output_tokens=24)
    assert (response.output_text, response.usage.input_tokens) == (text, prompt_tokens)
    with client.responses.stream(**asked, input=MESSAGES, max_output_tokens=24) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == text
    follow_up = [*MESSAGES, {"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
    going_on = client.responses.create(
        **asked, input="And then?", previous_response_id=response.id, max_output_tokens=8
    )
    again = client.chat.completions.create(**asked, messages=follow_up, max_tokens=8)
    assert going_on.output_text == again.choices[0].message.content
    assert going_on.usage.input_tokens_details.cached_tokens > 0, "the pages of the first turn are found again"
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as claude:
        counted = claude.messages.count_tokens(model="default", messages=MESSAGES)
        # The client has no argument for the temperature.
        asked = {"model": "default", "messages": MESSAGES, "max_tokens": 24, "extra_body": {"temperature": 0}}
        with claude.messages.stream(**asked) as stream:
            assert stream.get_final_text() == text
        message = claude.messages.create(**asked)
    assert message.content[0].text == text
    usage = message.usage
    assert counted.input_tokens == prompt_tokens == usage.input_tokens + usage.cache_read_input_tokens
    wait_for(lambda: idle(served))


def test_bad_requests_are_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


def test_streams_with_random_cancels_leave_no_page_in_use(served):
    async def scenario() -> int:
        rng = random.Random(0)
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> int:
                text = f"Chapter {index}. " + "The captain looked at the sea. " * rng.randint(1, 8)
                limit = rng.randint(1, 12) if index % 2 else 10_000
                stream = await client.chat.completions.create(
                    model="default", messages=[{"role": "user", "content": text}], max_tokens=40, stream=True
                )
                seen = 0
                async for _ in stream:
                    seen += 1
                    if seen >= limit:
                        await stream.close()
                        break
                return seen

            return sum(await asyncio.gather(*(one(i) for i in range(64))))

    assert asyncio.run(scenario()) > 64
    wait_for(lambda: idle(served))


def test_the_api_process_never_loads_torch(served):
    for process in (served.process, served.front()):
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert "torch" in Path(f"/proc/{served.engine().pid}/maps").read_text()


def test_helpers_of_a_front_end_hold_no_port(served, client):
    client.completions.create(model="default", prompt="Once", max_tokens=1)
    helpers = served.front().children(recursive=True)
    assert helpers, "texts are made by processes of their own"
    assert not [each for helper in helpers for each in helper.net_connections("tcp")]


def test_idle_costs_no_cpu(served):
    wait_for(lambda: idle(served))
    processes = [psutil.Process(served.process.pid), served.front(), served.engine()]

    def costs() -> bool:
        """Whether one of them takes more than 1 % of a core for four seconds."""
        before = [sum(p.cpu_times()[:2]) for p in processes]
        time.sleep(4)
        return any(sum(p.cpu_times()[:2]) - start >= 0.04 for p, start in zip(processes, before, strict=True))

    # Somebody else may have taken the core, and the system may have counted that.
    assert not all(costs() for _ in range(4))


def test_after_its_death_another_engine_serves(tmp_path):
    """For as long as its checkpoint is away, so that the death is seen, no other engine can begin."""
    model = Path(shutil.copytree(resolve("default", None), tmp_path / "model"))
    with serve(str(model), "--served-model-name", "default", *PAGES, "--stall-timeout-s", "3600") as served:

        async def scenario() -> list[object]:
            url = f"{served.url}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=2 * HANG_S) as client:

                async def one(stream: bool) -> object:
                    made = await client.completions.create(
                        model="default",
                        prompt="Once",
                        max_tokens=1500 if stream else 200,
                        stream=stream,
                        extra_body={"ignore_eos": True},
                    )
                    return [begun.append(chunk) async for chunk in made] if stream else made

                begun: list[object] = []
                asked = [asyncio.create_task(one(stream)) for stream in (True, True, False, False)]
                while len({chunk.id for chunk in begun}) < 2 or (
                    open_requests(served) < 4 and not any(each.done() for each in asked)
                ):
                    await asyncio.sleep(0.01)
                model.rename(tmp_path / "away")
                engine.send_signal(signal.SIGKILL)
                wait_for(lambda: served.get("/ready").status_code == 503)
                refused.append(
                    httpx.post(f"{url}/completions", json={"model": "default", "prompt": "a"}, timeout=HANG_S)
                )
                (tmp_path / "away").rename(model)
                return await asyncio.gather(*asked, return_exceptions=True)

        refused: list[httpx.Response] = []
        # What has read all before the engine dies, as this process stood still, shows nothing: then all is asked again.
        for _ in range(5):
            engine = served.engine()
            results = asyncio.run(scenario())
            if all(isinstance(result, openai.APIError) for result in results[:2]):
                break
        assert all(isinstance(result, openai.APIError) for result in results[:2]), results
        assert all(result.usage.completion_tokens == 200 for result in results[2:]), "begun again on another engine"
        answer = refused[-1]
        assert answer.status_code == 503 and answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) >= 1
        assert served.engine().pid != engine.pid
        assert served.get("/ready").status_code == served.get("/live").status_code == 200


def test_sigterm_ends_everything(tmp_path):
    with serve(*PAGES) as served:
        engine = served.engine()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(HANG_S) == 0
    assert not engine.is_running()
