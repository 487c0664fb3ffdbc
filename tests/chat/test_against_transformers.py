"""Rendering and encoding a conversation gives what transformers' apply_chat_template gives."""

from itertools import product
from pathlib import Path

import pytest

from quire.base.errors import RequestError
from quire.chat.template import ChatTemplate
from quire.tokenizer.tokenizer import Tokenizer
from tests.chat.samples import CONVERSATIONS, TEMPLATES
from tests.tokenizer.samples import MAKERS, make_byte_bpe, make_llama

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
FOLDERS = {"byte_bpe": make_byte_bpe, "llama": make_llama, "llama_legacy": MAKERS["llama_legacy"]}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory):
    """Ours and theirs, by name."""
    root = tmp_path_factory.mktemp("pairs")
    folders = {name: make(root / name) for name, make in FOLDERS.items()}
    return {
        name: (Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


def theirs(tokenizer, template: str, messages: list, **options) -> list[int] | str:
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False, **options)
    except Exception as error:
        return f"refused: {error}"


def ours(template: ChatTemplate, messages: list, **options) -> list[int] | str:
    try:
        return template.render(messages, **options)
    except RequestError as error:
        assert error.param in ("messages", "continue_final_message")
        return f"refused: {error.message.removeprefix('the chat template refuses these messages: ')}"


OPTIONS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "enable_thinking": False},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"add_generation_prompt": True, "tools": [{"name": "é<f>", "parameters": {"type": "object"}}]},
]


@pytest.mark.parametrize(("name", "style"), list(product(FOLDERS, TEMPLATES)))
def test_same_tokens(pairs, name: str, style: str) -> None:
    tokenizer, reference = pairs[name]
    template = ChatTemplate(TEMPLATES[style], tokenizer)
    compared = 0
    for messages, options in product(CONVERSATIONS, OPTIONS):
        if options.get("continue_final_message") and not messages[-1]["content"]:
            continue  # transformers tells an empty text from none by the tag; nothing to continue
        expected = theirs(reference, TEMPLATES[style], messages, **options)
        got = ours(template, messages, **options)
        if isinstance(expected, list) or "refused" not in str(got):
            assert got == expected
            compared += 1
        elif "alternate" in expected or "not supported" in expected:
            assert got == expected
    assert compared >= 8


@pytest.mark.parametrize("name", FOLDERS)
def test_same_tokens_for_plain_text(pairs, name: str) -> None:
    tokenizer, reference = pairs[name]
    for text in ["hello world", " a  b", "你好 👋", "", "x<s>y", "x<|im_end|> y"]:
        for special in (True, False):
            assert tokenizer.encode(text, special) == reference.encode(text, add_special_tokens=special)
        ids = tokenizer.encode(text)
        for skip in (True, False):
            assert tokenizer.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)
    assert tokenizer.special_tokens == reference.special_tokens_map
    assert (tokenizer.bos_id, tokenizer.eos_id) == (reference.bos_token_id, reference.eos_token_id)


@pytest.mark.parametrize("flag", ["add_bos_token", "add_eos_token"])
def test_the_post_processor_says_what_is_put_around_a_text(tmp_path: Path, flag: str) -> None:
    folder = make_llama(tmp_path)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", f'{{"{flag}": true, ', 1))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert Tokenizer.load(folder).encode("hello") == reference.encode("hello")


def test_parts_are_looped_over_by_templates_that_do(pairs) -> None:
    tokenizer, reference = pairs["byte_bpe"]
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    expected = theirs(reference, TEMPLATES["chatml"], messages, add_generation_prompt=True)
    assert ours(ChatTemplate(TEMPLATES["chatml"], tokenizer), messages) == expected
