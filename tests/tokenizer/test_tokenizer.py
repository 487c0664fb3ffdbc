"""Tokenizers load from Hugging Face folders, say what is wrong with them, and keep user text text."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import CheckpointError, EngineError, RequestError
from quire.checkpoint.facts import ModelFacts
from quire.tokenizer import tokenizer as module
from quire.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.samples import MAKERS, make_byte_bpe, make_llama, make_unigram

pytestmark = pytest.mark.plain


def test_facts_of_a_folder(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_byte_bpe(tmp_path))
    assert tokenizer.vocab_size == 384
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 2, 0)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.added_ids == {0, 1, 2, 382, 383}


def test_loads_from_model_facts(tmp_path: Path) -> None:
    facts = ModelFacts(
        name="x",
        path=str(make_byte_bpe(tmp_path)),
        config={},
        model_type="llama",
        dtype="float32",
        context_len=8,
        vocab_size=400,
        eos_token_ids=[],
        generation_config={},
        chat_template=None,
    )
    assert Tokenizer.load(facts).encode("hello")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("tokenizer.json", None, "is missing"),
        ("tokenizer.json", "{", "is damaged"),
        ("tokenizer.json", '{"version": "1.0"}', "is damaged"),
        ("tokenizer_config.json", "[1", "is damaged"),
        ("tokenizer_config.json", "[1]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder is damaged"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder is damaged"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"999": {"content": "<new>"}}}', "has id 999"),
        ("special_tokens_map.json", "nul", "is damaged"),
    ],
)
def test_bad_files_are_named_with_a_remedy(tmp_path: Path, file: str, text: str | None, says: str) -> None:
    folder = make_byte_bpe(tmp_path)
    (folder / file).unlink(missing_ok=True)
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=says) as error:
        Tokenizer.load(folder)
    assert str(folder / file) in str(error.value)
    assert "download" in str(error.value) or "save_pretrained" in str(error.value)


def test_settings_may_be_missing_or_add_tokens(tmp_path: Path) -> None:
    folder = make_byte_bpe(tmp_path)
    config = folder / "tokenizer_config.json"
    config.unlink()
    assert Tokenizer.load(folder).special_tokens == {}
    added = {"384": {"content": "<new>", "special": True}, "0": {"content": "<|endoftext|>"}}
    config.write_text(json.dumps({"added_tokens_decoder": added, "bos_token": {"content": "<bos>"}}))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a<new>")[-1] == 384
    assert (tokenizer.bos_id, tokenizer.eos_id) == (385, 2)
    assert {384, 385} <= tokenizer.special_ids


def test_stored_truncation_and_padding_are_off(tmp_path: Path) -> None:
    folder = make_byte_bpe(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = Tokenizer.load(folder)
    assert 0 not in tokenizer.encode("a")
    assert tokenizer.decode(tokenizer.encode("a long text, not cut")) == "a long text, not cut"


@pytest.mark.parametrize("name", ["byte_bpe", "llama", "unigram", "wordpiece"])
def test_token_bytes_join_to_the_text(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    text = "once upon a time" if name in ("unigram", "wordpiece") else "once upon 你 a time 👋"
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text, False))
    assert joined.decode().removeprefix(" ") == text


def test_token_text_of_odd_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    byte_bpe, llama = tokenizers["byte_bpe"], tokenizers["llama"]
    assert byte_bpe.token_text(2) == "<|im_end|>"
    assert byte_bpe.token_text(10_000) == byte_bpe.token_text(-1) == ""
    [byte] = [i for i in range(llama.vocab_size) if llama.token(i) == "<0xE4>"]
    assert (llama.token_bytes(byte), llama.token_text(byte)) == (b"\xe4", "\ufffd")


def test_ids_that_cannot_be_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    for ids in ([-1], [2**40]):
        with pytest.raises(RequestError, match="token ids") as error:
            tokenizers["byte_bpe"].decode(ids)
        assert error.value.param == "tokens"
    assert tokenizers["byte_bpe"].decode([9_999]) == ""


@pytest.mark.parametrize("call", [Tokenizer.encode, Tokenizer.encode_plain])
def test_lone_surrogates_are_refused(tokenizers: dict[str, Tokenizer], call) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        call(tokenizers["byte_bpe"], "a\ud800")


SPELLINGS = [
    "<|im_end|>",
    "x <|im_start|>system\n",
    "<s>",
    "</s>",
    "a</s>b<s>",
    "<unk>",
    "[INST] no [/INST]",
    "[SEP]",
    "<think>",
]


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_plain_text_never_becomes_an_added_token(
    tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[name]
    text = "".join(data.draw(st.lists(st.sampled_from([*SPELLINGS, " ", "a"]) | st.text(max_size=5), max_size=6)))
    ids = tokenizer.encode_plain(text, inside=data.draw(st.booleans()))
    unknown = tokenizer.special_tokens.get("unk_token")
    assert {tokenizer.token(i) for i in tokenizer.added_ids.intersection(ids)} <= {unknown}
    if name in ("byte_bpe", "llama", "llama_legacy"):
        assert tokenizer.decode(tokenizer.encode_plain(text)).strip(" ") == text.strip(" ")


def test_plain_text_is_encoded_like_any_other(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for text in ["hello world", "once  upon", " lead"]:
            assert tokenizer.encode_plain(text) == tokenizer.encode(text, False)


def test_text_inside_gets_no_word_mark(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]
    whole = tokenizer.encode("[INST]hello", False)
    assert tokenizer.encode("[INST]", False) + tokenizer.encode_plain("hello", inside=True) == whole
    assert tokenizer.encode_plain("hello") != tokenizer.encode_plain("hello", inside=True)


def test_control_spans(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_bpe"]
    assert tokenizer.control_spans("a<think>b<|im_end|>") == [(1, 8), (9, 19)]
    assert tokenizer.control_spans("a<think>b<|im_end|>", special_only=True) == [(9, 19)]
    assert tokenizer.control_spans("plain < text |>") == []


def test_spelling_after_normalization_is_found(tmp_path: Path) -> None:
    folder = make_byte_bpe(tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Lowercase"}
    for token in state["added_tokens"]:
        token["normalized"] = True
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = Tokenizer.load(folder)
    assert 2 in tokenizer.encode("A<|IM_END|>")
    assert tokenizer.control_spans("A<|IM_END|>") == [(0, 11)]
    assert 2 not in tokenizer.encode_plain("A<|IM_END|>")


def test_added_tokens_of_white_space_are_no_control(tmp_path: Path) -> None:
    folder = make_byte_bpe(tmp_path)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": {"384": {"content": "  "}}}))
    assert Tokenizer.load(folder).control_spans("a  b") == []


def test_threads_share_one_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_llama(tmp_path))
    texts = [f"the old man number {n} 你好 <s>" * 20 for n in range(40)]
    expected = [(tokenizer.encode(t), tokenizer.encode_plain(t)) for t in texts]
    fresh = Tokenizer.load(tmp_path)
    results: dict[int, list] = {}

    def work(number: int) -> None:
        results[number] = [(fresh.encode(t), fresh.encode_plain(t)) for t in texts]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[n] == expected for n in range(4))


def test_a_panic_is_an_error_of_its_call(tokenizers: dict[str, Tokenizer]) -> None:
    class PanicException(BaseException):
        """As the library's native code raises it."""

    def fail() -> None:
        raise PanicException("index out of bounds")

    with pytest.raises(EngineError, match="tokenizer failed"):
        module._guard(fail)
    with pytest.raises(KeyboardInterrupt):
        module._guard(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_unigram_spells_tokens_from_plain_text(tmp_path: Path) -> None:
    """The case that makes encode_plain look at its result: the vocabulary itself holds `</s>`."""
    tokenizer = Tokenizer.load(make_unigram(tmp_path))
    assert tokenizer._plain.start.encode("a</s>b", add_special_tokens=False).ids.count(tokenizer.eos_id) == 1
    assert tokenizer.eos_id not in tokenizer.encode_plain("a</s>b")


def test_words_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_byte_bpe(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    asked: list[str] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **how: asked.append(text) or encode(text, **how))
    first = tokenizer.encode_word(" sea")
    first.append(0)  # whoever gets them may change them
    assert tokenizer.encode_word(" sea") == encode(" sea", add_special_tokens=False)
    assert asked == [" sea"]
