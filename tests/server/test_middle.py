"""`suffix`: what the model is given, by the tokens that it has for it."""

from typing import Any

import openai
import pytest

from tests.server.fake_engine import EOS, FakeEngine, byte_tokenizer
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"


def given(engine: FakeEngine, more: tuple[str, ...]) -> list[list[int]]:
    """Prompts that the engine hears from now on, with these special tokens."""
    heard: list[list[int]] = []
    tokenizer = byte_tokenizer(*more)

    def script(prompt: list[int], index: int) -> list[int]:
        heard.append(prompt)
        return [*tokenizer.encode("x = 1"), EOS + 1, EOS]

    engine.tokenizer, engine.script = tokenizer, script
    return heard


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
        (("<fim_prefix>", "<fim_middle>", "<fim_suffix>"), "<fim_prefix>a<fim_suffix>b<fim_middle>"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
        (("[SUFFIX]", "[PREFIX]"), "[SUFFIX]b[PREFIX]a"),
    ],
)
def test_each_family_is_asked_in_its_own_way(tokens: tuple[str, ...], text: str) -> None:
    engine = FakeEngine()
    heard = given(engine, tokens)
    with Serving(engine) as running, running.client() as client:
        answer = client.completions.create(model=MODEL, prompt="a", suffix="b")
        assert engine.tokenizer.decode(heard[0], skip_special_tokens=False) == text
        assert sum(id >= EOS for id in heard[0]) == len(tokens)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("x = 1", "stop"), "a marker ends it"
        ids: Any = engine.tokenizer.encode("a")
        client.completions.create(model=MODEL, prompt=[ids, ids], suffix="b", stream=False)
        assert heard[1] == heard[2] == heard[0]
        chunks = client.completions.create(model=MODEL, prompt="a", suffix="b", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "x = 1"


def test_a_file_that_spells_the_markers_is_text() -> None:
    engine = FakeEngine()
    heard = given(engine, ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    with Serving(engine) as running, running.client() as client:
        client.completions.create(model=MODEL, prompt="a<|fim_middle|>", suffix="<|fim_suffix|>b")
        assert sum(id > EOS for id in heard[0]) == 3
        client.completions.create(model=MODEL, prompt="a", suffix="")
        assert heard[1] == engine.tokenizer.encode("a"), "nothing after it: an ordinary completion"


def test_other_models_refuse() -> None:
    with Serving() as running, running.client() as client:
        with pytest.raises(openai.BadRequestError, match="no tokens for filling in the middle") as error:
            client.completions.create(model=MODEL, prompt="a", suffix="b")
        assert (error.value.param, error.value.code) == ("suffix", "unsupported_parameter")
        with pytest.raises(openai.BadRequestError, match="echo"):
            client.completions.create(model=MODEL, prompt="a", suffix="b", echo=True)
        with pytest.raises(openai.BadRequestError, match="suffix"):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "a"}], extra_body={"suffix": "b"}
            )
