"""The detokenizer says, in pieces, exactly what decoding everything at once says."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.tokenizer.detokenizer import Detokenizer
from quire.tokenizer.tokenizer import Tokenizer
from tests.timing import grows_evenly
from tests.tokenizer.samples import MAKERS

pytestmark = pytest.mark.plain
TEXTS = [
    "hello world",
    "naïve café",
    "你好 世界",
    "👋🏽🎉 ok",
    "",
    " lead",
    "tail ",
    "a\n\nb",
    "don't. stop , now !",
    "\ufffd x",
]


def stream(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """The deltas for `ids` cut at `cuts`, and what is flushed."""
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    deltas = [detokenizer.push(ids[a:b]) for a, b in pairwise(edges)]
    return [*deltas, detokenizer.flush()]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150)
@given(data=st.data())
def test_deltas_join_to_the_full_decode(tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[name]
    texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)).map(lambda t: tokenizer.encode(t, False))
    noise = st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12)
    ids = [i for part in data.draw(st.lists(texts | noise, max_size=4)) for i in part]
    cuts = data.draw(st.lists(st.integers(0, 100), max_size=8))
    skip = data.draw(st.booleans())
    deltas = stream(Detokenizer(tokenizer, (), skip), ids, cuts)
    full = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(deltas) == full
    assert sum(d.count("\ufffd") for d in deltas) == full.count("\ufffd")


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=100)
@given(data=st.data())
def test_text_continues_the_prompt(tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[name]
    prompt = tokenizer.encode(data.draw(st.sampled_from(["Once upon", "he said: ", "<s>", "你好", "x<unk>"])))
    ids = tokenizer.encode(data.draw(st.sampled_from([t for t in TEXTS if "\ufffd" not in t])), False)
    deltas = stream(Detokenizer(tokenizer, prompt), ids, data.draw(st.lists(st.integers(0, 100), max_size=8)))
    assert tokenizer.decode(prompt) + "".join(deltas) == tokenizer.decode(prompt + ids)


def ids_of_bytes(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    if tokenizer.rules.kind == "fallback":
        return [i for byte in raw for i in range(tokenizer.vocab_size) if tokenizer.token(i) == f"<0x{byte:02X}>"]
    return [by_bytes[bytes([byte])] for byte in raw]


@pytest.mark.parametrize("name", ["byte_bpe", "llama"])
def test_no_part_of_a_character_is_shown(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    ids = [*ids_of_bytes(tokenizer, "é你👋".encode()), *tokenizer.encode("a", False)]
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("x"))
    deltas = [detokenizer.push([i]) for i in ids] + [detokenizer.flush()]
    assert all("\ufffd" not in delta for delta in deltas)
    assert "".join(deltas).startswith("é你👋")


@pytest.mark.parametrize("name", ["byte_bpe", "llama"])
def test_an_unfinished_character_comes_at_the_end(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    ids = ids_of_bytes(tokenizer, "你".encode()[:2])
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(ids) == ""
    assert detokenizer.flush() == tokenizer.decode(ids) != ""


@pytest.mark.parametrize("name", ["byte_bpe", "llama"])
def test_a_character_begun_in_the_prompt_is_finished(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    prompt, ids = (ids_of_bytes(tokenizer, part) for part in ("x你".encode()[:3], "你".encode()[2:]))
    detokenizer = Detokenizer(tokenizer, prompt)
    assert detokenizer.push(ids) + detokenizer.flush() == "你"
    unfinished = Detokenizer(tokenizer, prompt)
    letter = tokenizer.encode("b", False)[-1]
    assert unfinished.push([letter]) + unfinished.flush() == tokenizer.token_text(letter)
    assert Detokenizer(tokenizer, prompt).flush() == ""


def test_the_space_after_a_prompt_stays(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.token(i) == "▁the"]
    assert Detokenizer(tokenizer, tokenizer.encode("see")).push(ids) == " the"
    assert Detokenizer(tokenizer, tokenizer.encode("")).push(ids) == "the"


def test_special_tokens_may_stand_without_spaces(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["wordpiece"]
    ids = tokenizer.encode("[CLS][SEP]", False)
    assert Detokenizer(tokenizer, (), False).push(ids) == "[CLS] [SEP]"
    assert Detokenizer(tokenizer, (), False, False).push(ids) == "[CLS][SEP]"
    assert Detokenizer(tokenizer).push(ids) == ""


@pytest.mark.parametrize("name", MAKERS)
def test_work_grows_with_the_tokens(tokenizers: dict[str, Tokenizer], name: str) -> None:
    """Also for bytes that never become text."""
    tokenizer = tokenizers[name]
    unit = tokenizer.encode("hello world 你", False) + [tokenizer.vocab_size // 2] * 40

    def seconds(count: int) -> float:
        ids = unit * count
        detokenizer = Detokenizer(tokenizer)
        start = time.thread_time()
        for token_id in ids:
            detokenizer.push([token_id])
        return time.thread_time() - start

    assert grows_evenly(seconds, 160)


def test_sample_folders_are_complete(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        folder = make(tmp_path / name)
        assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
