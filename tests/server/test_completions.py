"""Completions, judged by the official client and by what lm-eval sends."""

from typing import Any

import openai
import pytest

from tests.server.fake_engine import ANSWER, FakeEngine
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"


def echo_script(prompt: list[int], index: int) -> list[int]:
    """Each prompt is answered by its own tokens, moved by the index: mixed-up answers show."""
    return [(token + index) % 256 for token in prompt]


def test_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="abc", max_tokens=100)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, ANSWER, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, len(ANSWER.encode()) + 1)


def test_sixteen_tokens_is_the_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="abc", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


@pytest.mark.parametrize("prompt", ["ab", ["ab", "cd"], [64, 65], [[64, 65], [66]]], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_prompt_and_the_order_of_choices(prompt: Any, stream: bool) -> None:
    engine = FakeEngine(echo_script)
    with Serving(engine) as running, running.client() as client:
        answer: Any = client.completions.create(model=MODEL, prompt=prompt, n=2, max_tokens=2, stream=stream)
        found: dict[int, str] = {}
        for piece in answer if stream else [answer]:
            for choice in piece.choices:
                found[choice.index] = found.get(choice.index, "") + choice.text
    listed = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    ids = [engine.tokenizer.encode(one) if isinstance(one, str) else one for one in listed]
    expected = [engine.tokenizer.decode((echo_script(one, k) * 2)[:2]) for one in ids for k in range(2)]
    assert [found[index] for index in range(2 * len(ids))] == expected


def test_a_stream_ends_with_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = client.completions.create(
        model=MODEL, prompt=["ab", "cde"], stream=True, stream_options=options, max_tokens=3
    )
    assert len({(chunk.id, chunk.created) for chunk in [*chunks, last]}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 6)
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 4


def test_echo(client: openai.OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="abc", echo=True, max_tokens=5).choices[0].text == "abcHello"
    ids: Any = [64, 65]
    echoed = client.completions.create(model=MODEL, prompt=ids, echo=True, max_tokens=5).choices[0].text
    assert echoed.endswith("Hello")
    assert len(echoed) == 7


def test_echo_alone_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="abc", echo=True, max_tokens=0, logprobs=1)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_what_lm_eval_reads(client: openai.OpenAI, stream: bool, n: int) -> None:
    """echo with logprobs: the arrays cover prompt and one generated token; the first entry is null."""
    answer: Any = client.completions.create(
        model=MODEL,
        prompt=[64, 65, 66],
        echo=True,
        max_tokens=1,
        logprobs=3,
        n=n,
        seed=1234,
        temperature=0,
        stream=stream,
    )
    pieces = [choice for part in (answer if stream else [answer]) for choice in part.choices if choice.index == n - 1]
    tokens, logprobs, tops, offsets = [], [], [], []
    for piece in pieces:
        tokens += piece.logprobs.tokens
        logprobs += piece.logprobs.token_logprobs
        tops += piece.logprobs.top_logprobs
        offsets += piece.logprobs.text_offset
    assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == 4
    assert (logprobs[0], tops[0]) == (None, None)
    assert offsets == [0, 1, 2, 3]
    assert "".join(tokens) == "".join(piece.text for piece in pieces)
    for token, logprob, top in zip(tokens[1:], logprobs[1:], tops[1:], strict=True):
        assert top[token] == logprob, "the chosen token is among the top ones, with the same number"
        assert min(top.values()) >= -9999.0


def test_logprobs_zero_tells_the_chosen_token_only(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model=MODEL, prompt="abc", logprobs=0, max_tokens=2).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs == [{"H": -1.0}, {"e": -1.0}]
    assert logprobs.text_offset == [0, 1]


def test_token_ids_are_returned_if_asked(client: openai.OpenAI) -> None:
    choice: Any = client.completions.create(
        model=MODEL, prompt=[1, 2], max_tokens=2, extra_body={"return_token_ids": True}
    ).choices[0]
    assert choice.prompt_token_ids == [1, 2]
    assert len(choice.token_ids) == 2


def test_the_longest_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[1] * 255, max_tokens=50)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1, "max_tokens reaches to the end of the context"
    for length in (256, 257):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(model=MODEL, prompt=[1] * length)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")


def test_one_bad_prompt_of_several_refuses_all() -> None:
    with Serving() as running, running.client() as client:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL, prompt=[[1, 2], [3, 300]], stream=True)
        assert running.engine.submitted == [], "nothing was submitted"


def test_as_many_prompts_as_allowed() -> None:
    with Serving(max_queued_requests=2000) as running, running.client() as client:
        answer = client.completions.create(model=MODEL, prompt=[[1]] * 1024, max_tokens=1)
        assert [choice.index for choice in answer.choices] == list(range(1024))
        wait_for(lambda: running.service.admission.open == 0)
