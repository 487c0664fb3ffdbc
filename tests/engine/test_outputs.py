"""The output processor: every kind of output, cut however the core cuts it, says the same; errors stay at home."""

import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.completion import UNREAD_TOKENS
from quire.engine.outputs import OutputProcessor
from quire.messages.outputs import RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.plan import TokenLogprobs
from quire.messages.request import Request
from quire.messages.wire import Delta, Finish
from quire.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.samples import make_byte_bpe, make_llama

pytestmark = pytest.mark.plain
CUMULATIVE, DELTA, FINAL_ONLY = RequestOutputKind


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_byte_bpe(tmp_path_factory.mktemp("byte_bpe")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_llama(tmp_path_factory.mktemp("llama")))


def begin(processor: OutputProcessor, request_id: str = "r", prompt: list[int] | None = None, **settings) -> None:
    params = SamplingParams(**{"output_kind": DELTA, **settings})
    request = Request(id=request_id, token_ids=[5] if prompt is None else prompt, params=params)
    processor.add(request, "the prompt", params)


def logprobs_of(ids: Iterable[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs.of([i, i, i + 1], [-1.0, -1.0, -2.0], 1) for i in ids]


def feed(
    processor: OutputProcessor, ids: list[int], cuts: list[int], **last
) -> tuple[list[RequestOutput], list[Finish]]:
    """News of request "r", cut at `cuts`, the last of them with the fields `last`."""
    outputs, finishes = [], []
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    for a, b in list(pairwise(edges)) or [(0, 0)]:
        delta = Delta("r", 0, ids[a:b], logprobs_of(ids[a:b]))
        if b == len(ids):
            delta = Delta("r", 0, ids[a:b], logprobs_of(ids[a:b]), **last)
        made, told = processor.process([delta])
        outputs += made
        finishes += told
    return outputs, finishes


def joined(outputs: list[RequestOutput]) -> tuple[str, list[int], list]:
    """Text, tokens and logprobs of a stream of deltas with one completion."""
    parts = [output.outputs[0] for output in outputs]
    return (
        "".join(part.text for part in parts),
        [i for part in parts for i in part.token_ids],
        [entry for part in parts for entry in part.logprobs or []],
    )


WORDS = st.sampled_from(["hello", " stop", "st", "op", "你", "好", ". ", "\n\n", "👋", " a", "STOP"])
STOPS = st.lists(st.sampled_from(["stop", "op", "你好", "\n\n", "👋 a", "o st", "tops", "."]), max_size=3, unique=True)


@settings(max_examples=300)
@given(data=st.data())
def test_any_cut_says_what_the_whole_text_says(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Text and tokens of DELTA, CUMULATIVE and FINAL_ONLY outputs against a search of the finished text."""
    ids = tokenizer.encode("".join(data.draw(st.lists(WORDS, max_size=8))), False)
    ids += data.draw(st.lists(st.integers(3, tokenizer.vocab_size - 1), max_size=4))
    stops, include = data.draw(STOPS), data.draw(st.booleans())
    text = tokenizer.decode(ids)
    found = re.search("|".join(map(re.escape, sorted(stops, key=len))), text) if stops else None
    expected = text if not found else text[: found.end() if include else found.start()]
    count = len(ids)
    if found:  # the token that completes the stop string counts; text held in an unfinished character comes later
        ends = [len(tokenizer.decode(ids[:n]).rstrip("\ufffd")) for n in range(1, len(ids) + 1)]
        count = next((n for n, end in enumerate(ends, 1) if end >= found.end()), len(ids))
    for kind in RequestOutputKind:
        processor = OutputProcessor(tokenizer)
        begin(processor, stop=stops, include_stop_str_in_output=include, output_kind=kind, logprobs=1)
        cuts = data.draw(st.lists(st.integers(0, 50), max_size=6))
        outputs, finishes = feed(processor, ids, cuts, finish_reason="length")
        got_text, got_ids, got_logprobs = joined(outputs if kind == DELTA else outputs[-1:])
        last = outputs[-1].outputs[0]
        assert got_text == expected
        assert len(got_logprobs) == len(got_ids)
        assert last.finish_reason == ("stop" if found else "length")
        assert last.stop_reason == (found.group() if found else None)
        assert last.cumulative_logprob == -len(got_ids)
        assert [output.finished for output in outputs].index(True) == len(outputs) - 1
        if "\ufffd" not in text:
            assert got_ids == ids[:count]
        if finishes:
            assert finishes == [Finish("r", 0, len(got_ids))]
        assert len(processor) == 0


@given(data=st.data())
def test_every_output_is_a_prefix_of_the_end(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = tokenizer.encode("".join(data.draw(st.lists(WORDS, max_size=8))), False)
    processor = OutputProcessor(tokenizer)
    begin(processor, stop=data.draw(STOPS), output_kind=CUMULATIVE)
    outputs, _ = feed(processor, ids, list(range(50)), finish_reason="length")
    for output in outputs:
        assert outputs[-1].outputs[0].text.startswith(output.outputs[0].text)
        assert outputs[-1].outputs[0].token_ids[: len(output.outputs[0].token_ids)] == output.outputs[0].token_ids


def test_stop_in_pieces(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, stop="好st")
    ids = [i for part in ("a", "好", "s", "t", "x") for i in tokenizer.encode(part, False)]
    outputs, finishes = feed(processor, ids, list(range(20)))
    assert joined(outputs)[0] == "a"
    assert finishes == [Finish("r", 0, len(ids) - 1)]
    assert joined(outputs)[1] == ids[:-1]
    assert processor.ignored == 1  # the news after the stop


def test_tokens_wait_with_their_text(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, stop="stop now", logprobs=0)
    a, s, t, x = (tokenizer.encode(part, False)[0] for part in "astx")
    outputs, _ = processor.process([Delta("r", 0, [a], logprobs_of([a]))])
    assert joined(outputs) == ("a", [a], outputs[0].outputs[0].logprobs)
    assert processor.process([Delta("r", 0, [s, t], logprobs_of([s, t]))]) == ([], [])
    outputs, _ = processor.process([Delta("r", 0, [x], logprobs_of([x]))])
    assert joined(outputs)[:2] == ("stx", [s, t, x])


def test_stop_in_the_last_news_needs_no_finish(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, stop="end")
    outputs, finishes = processor.process([Delta("r", 0, tokenizer.encode("the end", False), finish_reason="length")])
    assert (outputs[0].outputs[0].finish_reason, outputs[0].outputs[0].stop_reason) == ("stop", "end")
    assert outputs[0].finished
    assert finishes == []


def test_min_tokens_passes_over_stops(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, stop=".", min_tokens=2)
    dot, a = (tokenizer.encode(part, False)[0] for part in ".a")
    outputs, finishes = feed(processor, [dot, dot, a, dot, a], list(range(5)))
    assert joined(outputs)[0] == "..a"
    assert finishes == [Finish("r", 0, 4)]


def test_tokens_after_the_one_that_completes_a_stop_do_not_count(tokenizer: Tokenizer) -> None:
    """Whether "b" or "abc" ends the text is known only two tokens after "b"."""
    processor = OutputProcessor(tokenizer)
    begin(processor, stop=["b", "abcd"])
    ids = [tokenizer.encode(part, False)[0] for part in "abcx"]
    outputs, finishes = feed(processor, ids, list(range(5)))
    assert joined(outputs)[:2] == ("a", ids[:2])
    assert finishes == [Finish("r", 0, 2)]


@pytest.mark.parametrize(
    ("include", "skip", "text"), [(False, False, "hi"), (True, False, "hi<|im_end|>"), (True, True, "hi")]
)
def test_text_of_eos(tokenizer: Tokenizer, include: bool, skip: bool, text: str) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, include_stop_str_in_output=include, skip_special_tokens=skip)
    ids = [*tokenizer.encode("hi", False), 2]
    outputs, _ = feed(processor, ids, [1], finish_reason="stop")
    assert joined(outputs)[:2] == (text, ids)
    assert outputs[-1].outputs[0].stop_reason is None


def test_stop_token_is_told(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor)
    a = tokenizer.encode("a", False)
    outputs, _ = processor.process([Delta("r", 0, a, finish_reason="stop", stop_reason=a[0])])
    assert (outputs[0].outputs[0].text, outputs[0].outputs[0].stop_reason) == ("", a[0])


def test_n_completions(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a", False), tokenizer.encode("b", False)
    for kind, seen in ((DELTA, [[1], [0, 1]]), (CUMULATIVE, [[0, 1], [0, 1]]), (FINAL_ONLY, [[0, 1]])):
        processor = OutputProcessor(tokenizer)
        begin(processor, n=2, output_kind=kind)
        outputs = processor.process([Delta("r", 1, b)])[0]
        outputs += processor.process(
            [Delta("r", 0, a, finish_reason="length"), Delta("r", 1, b, finish_reason="stop")]
        )[0]
        assert [[part.index for part in output.outputs] for output in outputs] == seen
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        if kind != DELTA:
            assert [part.text for part in outputs[-1].outputs] == ["a", "b"]
        assert len(processor) == 0


def test_a_finished_completion_is_said_once(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, n=2)
    a = tokenizer.encode("a", False)
    processor.process([Delta("r", 0, a, finish_reason="length")])
    [output], _ = processor.process([Delta("r", 0, a), Delta("r", 1, a)])
    assert [part.index for part in output.outputs] == [1]
    assert not output.finished


def test_prompt_facts(tokenizer: Tokenizer) -> None:
    a = tokenizer.encode("a", False)
    for kind, times in ((DELTA, 1), (CUMULATIVE, 2), (FINAL_ONLY, 1)):
        processor = OutputProcessor(tokenizer)
        begin(processor, prompt=[5, 6], prompt_logprobs=1, output_kind=kind)
        outputs = processor.process([Delta("r", 0, a, cached_tokens=7, prompt_logprobs=logprobs_of([6]))])[0]
        outputs += processor.process([Delta("r", 0, a, finish_reason="length")])[0]
        told = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
        assert len(told) == times
        first, second = told[0]
        assert first is None
        assert second is not None
        assert (second[6].rank, second[6].decoded_token) == (1, tokenizer.token_text(6))
        assert all(output.num_cached_tokens == 7 for output in outputs)
        assert (outputs[0].prompt, outputs[0].prompt_token_ids) == ("the prompt", [5, 6])


def test_logprobs_for_people(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, logprobs=2)
    entry = TokenLogprobs.of([300, 301, 302], [-3.0, -0.5, -1.0], 9)
    [output], _ = processor.process([Delta("r", 0, [300], [entry])])
    [named] = output.outputs[0].logprobs or []
    assert [(i, p.logprob, p.rank, p.decoded_token) for i, p in named.items()] == [
        (300, -3.0, 9, tokenizer.token_text(300)),
        (301, -0.5, 1, tokenizer.token_text(301)),
        (302, -1.0, 2, tokenizer.token_text(302)),
    ]
    assert output.outputs[0].cumulative_logprob == -3.0


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_without_text(tokenizer: Tokenizer, with_tokenizer: bool) -> None:
    processor = OutputProcessor(tokenizer if with_tokenizer else None)
    begin(processor, detokenize=not with_tokenizer, logprobs=0)
    outputs, _ = feed(processor, [7, 8, 9], [1, 2], finish_reason="length")
    text, ids, logprobs = joined(outputs)
    assert (text, ids) == ("", [7, 8, 9])
    assert all(p.decoded_token is None for entry in logprobs for p in entry.values())


def test_the_text_continues_the_prompt(llama: Tokenizer) -> None:
    processor = OutputProcessor(llama)
    begin(processor, prompt=llama.encode("hello"))
    [the] = [i for i in range(llama.vocab_size) if llama.token(i) == "▁the"]
    outputs, _ = feed(processor, [the], [], finish_reason="length")
    assert joined(outputs)[0] == " the"


def test_unknown_and_aborted_requests_are_ignored(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor)
    processor.abort("r")
    processor.abort("never")
    assert processor.process([Delta("r", 0, [5]), Delta("x", 0, [5])]) == ([], [])
    assert processor.ignored == 2
    assert len(processor) == 0


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_was_held_stays_held_when_it_goes_wrong(tokenizer: Tokenizer, reason: str) -> None:
    """What was shown must be the beginning of what a run without the fault shows."""
    processor = OutputProcessor(tokenizer)
    begin(processor, stop="stop")
    outputs, _ = feed(processor, tokenizer.encode("a st", False), [1], finish_reason=reason, error="the sentence")
    assert joined(outputs)[0] == "a "
    assert outputs[-1].outputs[0].finish_reason == reason
    assert outputs[-1].error == "the sentence"
    assert len(processor) == 0


@pytest.mark.parametrize("reason", ["length", "abort"])
def test_text_that_is_read_at_the_end_is_all_of_it(tokenizer: Tokenizer, reason: str) -> None:
    """Also what is left over when text is made from many tokens at once."""
    processor = OutputProcessor(tokenizer)
    begin(processor, output_kind=FINAL_ONLY)
    text = "hello 你好 " * UNREAD_TOKENS
    ids = tokenizer.encode(text + "a", False)
    assert len(ids) % UNREAD_TOKENS, "some are left over"
    [output], _ = feed(processor, ids, list(range(len(ids))), finish_reason=reason)
    assert (output.outputs[0].text, output.outputs[0].token_ids) == (text + "a", ids)


def test_a_failure_belongs_to_its_request(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = OutputProcessor(tokenizer)
    begin(processor, "bad", n=2)
    begin(processor, "good")
    a = tokenizer.encode("a", False)
    pieces = Tokenizer.token_bytes

    def fail_on_nine(self: Tokenizer, token_id: int) -> bytes:
        if token_id == 9:
            raise ValueError("no such piece")
        return pieces(self, token_id)

    monkeypatch.setattr(Tokenizer, "token_bytes", fail_on_nine)
    processor.abort("bad")
    begin(processor, "bad", n=2)
    outputs, finishes = processor.process([Delta("bad", 1, a), Delta("bad", 0, [9]), Delta("good", 0, a)])
    bad, good = outputs
    assert [part.finish_reason for part in bad.outputs] == ["error", "error"]
    assert bad.finished
    assert (bad.error or "").startswith("the output could not be turned into text")
    assert finishes == [Finish("bad", 0, 1), Finish("bad", 1, 1)]
    assert good.outputs[0].text == "a"
    assert len(processor) == 1


def test_many_requests_leave_nothing(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    ids = tokenizer.encode("hello world stop", False)
    for number in range(20):
        begin(processor, str(number), stop="stop" if number % 2 else None)
    for token in ids:
        processor.process([Delta(str(number), 0, [token]) for number in range(20)])
    assert len(processor) == 10
    processor.process([Delta(str(number), 0, [], finish_reason="abort") for number in range(20)])
    assert len(processor) == 0


def test_needs_no_torch() -> None:
    code = "import sys; import quire.engine.outputs, quire.chat.template; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
