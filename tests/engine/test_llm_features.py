"""What `LLM` offers beyond plain greedy text, on the model that ships with quire."""

import gc
import math

import psutil
import pytest

from quire import LLM, SamplingParams
from quire.base.errors import RequestError
from quire.layers.decoder import Decoder

pytestmark = pytest.mark.torch

PROMPT = "The captain looked at the sea, and"


@pytest.fixture(scope="module")
def llm():
    with LLM(num_gpu_blocks_override=300, dtype="float32") as made:
        yield made


def decoders() -> int:
    """Models that are alive in this process."""
    return sum(issubclass(type(o), Decoder) for o in gc.get_objects())


def ids_of(llm, **params):
    (output,) = llm.generate([PROMPT], SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **params}))
    return output.outputs[0].token_ids


def test_a_logits_processor_sees_its_own_tokens_and_decides(llm):
    seen = []

    def only_even(generated, logits):
        seen.append(list(generated))
        logits[1::2] = -math.inf
        return logits

    def with_prompt(prompt, generated, logits):
        assert prompt == llm.get_tokenizer().encode(PROMPT)
        return logits

    ids = ids_of(llm, logits_processors=[only_even, with_prompt], ignore_eos=True)
    assert all(token % 2 == 0 for token in ids)
    assert seen == [ids[:i] for i in range(len(ids))]


def test_a_processor_that_raises_ends_only_its_request(llm):
    def broken(generated, logits):
        raise ValueError("not today")

    good = SamplingParams(temperature=0.0, max_tokens=12)
    bad = SamplingParams(temperature=0.0, max_tokens=12, logits_processors=[broken])
    first, second = llm.generate([PROMPT, PROMPT], [good, bad])
    assert first.outputs[0].token_ids == ids_of(llm)
    assert second.outputs[0].finish_reason == "error"
    assert "not today" in second.error


def test_bans_bias_and_lengths(llm):
    plain = ids_of(llm)
    assert plain[0] not in ids_of(llm, logit_bias={plain[0]: -100.0})
    assert set(ids_of(llm, allowed_token_ids=[50, 60])) <= {50, 60}
    text = llm.get_tokenizer().decode(plain)
    word = text.split()[2]
    (output,) = llm.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=12, bad_words=[word]))
    assert word not in output.outputs[0].text.split()
    (output,) = llm.generate([PROMPT], SamplingParams(temperature=0.0, max_tokens=40, stop=[word]))
    assert word not in output.outputs[0].text
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", word)


def test_min_tokens_delays_the_end(llm):
    messages = [{"role": "user", "content": "Good morning."}]
    (short,) = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=400))
    count = len(short.outputs[0].token_ids)
    assert short.outputs[0].finish_reason == "stop"
    (longer,) = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=400, min_tokens=count + 5))
    assert len(longer.outputs[0].token_ids) >= count + 5


def test_stream_and_generate_say_the_same(llm):
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=30)
    (whole,) = llm.generate([PROMPT], params)
    assert "".join(output.outputs[0].text for output in llm.stream(PROMPT, params)) == whole.outputs[0].text


def test_defaults_come_from_the_checkpoint(llm):
    assert llm.get_default_sampling_params().temperature == pytest.approx(0.8)


def test_chat_checks_messages(llm):
    with pytest.raises(RequestError) as refused:
        llm.chat([{"role": "robot", "content": "hi"}])
    assert refused.value.param == "messages[0].role"


def test_close_gives_the_memory_back():
    process = psutil.Process()
    with LLM(num_gpu_blocks_override=300) as first:
        first.generate([PROMPT], SamplingParams(max_tokens=4))
    gc.collect()
    before, models = process.memory_info().rss, decoders()
    for _ in range(3):
        with LLM(num_gpu_blocks_override=8000) as again:
            again.generate([PROMPT], SamplingParams(max_tokens=4))
    gc.collect()
    assert process.memory_info().rss - before < 40 << 20
    assert decoders() == models


def test_a_context_that_does_not_fit_shrinks_with_a_sentence(caplog):
    with caplog.at_level("WARNING", "quire"), LLM(num_gpu_blocks_override=11) as small:
        assert small.facts.max_model_len == 160
    assert "max_model_len is 160 instead of 2048" in caplog.text
