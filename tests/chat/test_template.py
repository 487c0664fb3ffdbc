"""Templates run in a sandbox with limits, and user text stays user text."""

import json
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.base.errors import CheckpointError, RequestError
from quire.chat.sandbox import Limits
from quire.chat.template import ChatTemplate
from quire.tokenizer.tokenizer import Tokenizer
from tests.chat.samples import CHATML, TEMPLATES
from tests.timing import grows_evenly
from tests.tokenizer.samples import make_byte_bpe, make_llama
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain
HI = [{"role": "user", "content": "hi"}]
LONGER = "it ran longer than 0.3 s"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_byte_bpe(tmp_path_factory.mktemp("byte_bpe")))


def test_bad_source_is_refused_at_the_start(tokenizer: Tokenizer) -> None:
    for source in ("{{ a }}\n{% for %}", "{{ a }}\n{{ a | nofilter }}"):
        with pytest.raises(CheckpointError, match="line 2"):
            ChatTemplate(source, tokenizer)


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "template_error", "roles must alternate$"),
        ("{{ nothing.of_this }}", "template_error", "does not fit"),
        ("{{ messages.__class__.__mro__ }}", "template_error", "__class__"),
        ("{{ messages.append(1) }}", "template_error", "append"),
        ("{% for m in none %}{% endfor %}", "template_error", "failed on these messages; the log"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "template_error", "failed on these messages; the log"),
        ("{% for i in range(10**9) %}x{% endfor %}", "template_timeout", "Range"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "template_timeout",
            LONGER,
        ),
        ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "template_timeout", LONGER),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(99999) %}{{ 'abcdefgh' }}{% endfor %}",
            "template_timeout",
            "wrote",
        ),
        ("{{ 'x' * 10**9 }}", "template_timeout", "repeats"),
        ("{{ 10**9 * [1] }}", "template_timeout", "repeats"),
        ("{{ 2 ** 100000 }}", "template_timeout", "power"),
    ],
)
def test_failing_templates_are_errors_of_the_request(tokenizer: Tokenizer, source: str, code: str, says: str) -> None:
    # Only those that compute for ever may end by their time: it may go by while somebody else has the processor.
    template = ChatTemplate(source, tokenizer, Limits(seconds=0.3 if says == LONGER else HANG_S, chars=100_000))
    began = time.thread_time()
    with pytest.raises(RequestError, match=says) as error:
        template.render(HI)
    assert time.thread_time() - began < 20
    assert (error.value.param, error.value.code) == ("messages", code)
    assert "/" not in error.value.message


def test_loops_keep_their_variables(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}"
        "{{ loop.nextitem.content if loop.nextitem is defined }}{% else %}none{% endfor %}"
    )
    template = ChatTemplate(source, tokenizer)
    assert template.render_text([*HI, {"role": "assistant", "content": "x"}, *HI]) == "1/2,hi2/2"
    assert template.render_text([{"role": "system", "content": "x"}]) == "none"


def test_messages_must_be_plain(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(CHATML, tokenizer)
    for messages, param in [
        ([], "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": Path()}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages"),
    ]:
        with pytest.raises(RequestError) as error:
            template.render(messages)
        assert error.value.param == param


def test_developer_is_system_where_the_template_knows_no_other(tokenizer: Tokenizer) -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert ChatTemplate("{{ messages[0].role }}", tokenizer).render_text(messages) == "system"
    source = "{{ messages[0].role }}{# developer #}"
    assert ChatTemplate(source, tokenizer).render_text(messages) == "developer"


def test_a_call_without_words_is_empty_where_the_template_knows_no_calls(tokenizer: Tokenizer) -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    assert ChatTemplate("{{ 'a:' + messages[0].content }}", tokenizer).render_text(messages) == "a:"
    source = "{% if messages[0].content is none %}{{ messages[0].tool_calls[0].function.name }}{% endif %}"
    assert ChatTemplate(source, tokenizer).render_text(messages) == "f"


TEXTS = "{{ messages[0]['content'] }}"
LOOP = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}"
EITHER = (
    "{% set c = messages[0]['content'] %}{% if c is string %}{{ c }}{% else %}"
    "{% for part in c %}[{{ part.text }}]{% endfor %}{% endif %}"
)
MACRO = (
    "{% macro show(content) %}{% for part in content %}[{{ part.text }}]{% endfor %}{% endmacro %}"
    "{{ show(messages[0].content) }}"
)


@pytest.mark.parametrize(
    ("source", "of_text", "of_parts"),
    [(TEXTS, "ab", "a\nb"), (LOOP, "[ab]", "[a][b]"), (EITHER, "ab", "[a][b]"), (MACRO, "[ab]", "[a][b]")],
)
def test_content_comes_in_the_form_that_the_template_reads(
    tokenizer: Tokenizer, source: str, of_text: str, of_parts: str
) -> None:
    template = ChatTemplate(source, tokenizer)
    parts = [{"type": "text", "text": text} for text in "ab"]
    assert template.render_text([{"role": "user", "content": "ab"}]) == of_text
    assert template.render_text([{"role": "user", "content": parts}]) == of_parts


def test_the_last_message_stays_open(tokenizer: Tokenizer) -> None:
    messages = [*HI, {"role": "assistant", "content": "It is "}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert ChatTemplate(CHATML, tokenizer).render_text(messages, **options).endswith("assistant\nIt is ")
    trimming = CHATML.replace("{{- message.content }}", "{{- message.content | trim }}")
    assert ChatTemplate(trimming, tokenizer).render_text(messages, **options).endswith("assistant\nIt is")
    parts = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "It"}]}]
    assert ChatTemplate(CHATML, tokenizer).render_text(parts, **options).endswith("assistant\nIt")


@pytest.mark.parametrize(
    ("source", "message", "options"),
    [
        (CHATML, {"role": "assistant", "content": "x"}, {"add_generation_prompt": True}),
        (CHATML, {"role": "assistant", "content": None}, {}),
        ("no content", {"role": "assistant", "content": "x"}, {}),
    ],
)
def test_what_cannot_stay_open_is_refused(tokenizer: Tokenizer, source: str, message: dict, options: dict) -> None:
    with pytest.raises(RequestError) as error:
        ChatTemplate(source, tokenizer).render(
            [message], **{"add_generation_prompt": False, "continue_final_message": True, **options}
        )
    assert error.value.param == "continue_final_message"


LITERALS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<think>", "[SEP]"]
EVIL = st.lists(st.sampled_from([*LITERALS, "a", " ", "\n", "é", "<|im_", "end|>"]), max_size=5).map("".join)
template_of = cache(ChatTemplate)
"""Compiled once for all examples of a property."""


@pytest.mark.parametrize("name", ["byte_bpe", "llama", "llama_legacy", "wordpiece", "unigram"])
@pytest.mark.parametrize("style", TEMPLATES)
@settings(max_examples=40)
@given(text=EVIL)
def test_no_text_of_a_user_becomes_a_special_token(
    tokenizers: dict[str, Tokenizer], name: str, style: str, text: str
) -> None:
    tokenizer = tokenizers[name]
    template = template_of(TEMPLATES[style], tokenizer)
    harmless = template.render([{"role": "user", "content": "a"}], tools=["a"])
    ids = template.render([{"role": "user", "content": text}], tools=[text])
    unknown = {i for i in tokenizer.special_ids if tokenizer.token(i) in ("<unk>", "[UNK]")}
    specials = tokenizer.special_ids - unknown
    assert [i for i in ids if i in specials] == [i for i in harmless if i in specials]


@settings(max_examples=40)
@given(parts=st.lists(EVIL, min_size=1, max_size=4))
def test_parts_cannot_join_to_a_special_token(tokenizers: dict[str, Tokenizer], parts: list[str]) -> None:
    tokenizer = tokenizers["byte_bpe"]
    for source in (
        CHATML,
        CHATML.replace("{{- part.text }}", "{{- part.text | trim }}"),
        CHATML.replace("part.text }}", "part.text[:99] }}"),
    ):
        content = [{"type": "text", "text": part} for part in parts]
        ids = template_of(source, tokenizer).render([{"role": "user", "content": content}])
        assert sum(i in tokenizer.special_ids for i in ids) == 5


@settings(max_examples=40)
@given(text=EVIL)
def test_marked_text_is_kept_word_for_word(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for name in ("byte_bpe", "llama"):
        tokenizer = tokenizers[name]
        template = template_of(CHATML, tokenizer)
        messages = [{"role": "user", "content": text}]
        ids = template.render(messages)
        assert tokenizer.decode(ids, skip_special_tokens=False) == template.render_text(messages)


def test_keys_and_names_are_text_of_the_user_too(tokenizer: Tokenizer) -> None:
    source = "{{ tools | tojson(ensure_ascii=true) }}{{ messages[0].name | upper | lower }}{{ documents }}"
    ids = ChatTemplate(source, tokenizer).render(
        [{**HI[0], "name": "<|im_start|>"}], tools=[{"<|im_end|>": 1}], documents=["<|endoftext|>"]
    )
    assert not tokenizer.special_ids.intersection(ids)


def test_only_part_of_a_conversation_is_encoded_apart(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(CHATML, tokenizer)
    tame = template.render([HI[0], {"role": "user", "content": "x"}])
    wild = template.render([HI[0], {"role": "user", "content": "<|im_end|>"}])
    common = next(n for n, (a, b) in enumerate(zip(tame, wild, strict=False)) if a != b)
    assert tokenizer.decode(tame[:common], skip_special_tokens=False).endswith("<|im_start|>user\n")


def test_an_assistant_keeps_its_own_words(tokenizer: Tokenizer) -> None:
    """Tokens that are not special, such as <think>, are what the model itself wrote; templates look for them."""
    [think] = tokenizer.encode("<think>", False)
    template = ChatTemplate(CHATML, tokenizer)
    assert think in template.render([*HI, {"role": "assistant", "content": "<think>x<|im_end|>"}])
    assert think not in template.render([{"role": "user", "content": "<think>x"}])


def test_tests_for_a_tag_go_on_working(tokenizer: Tokenizer) -> None:
    source = "{{ 'yes' if '<think>' in messages[0].content }}{{ messages[0].content.split('<think>')[-1] }}"
    ids = ChatTemplate(source, tokenizer).render([{"role": "user", "content": "a<think>b"}])
    assert tokenizer.decode(ids) == "yesb"


def test_marks_are_never_the_text_of_a_user(tokenizer: Tokenizer) -> None:
    text = "~~0^1^ ~1^ ~3^<|im_end|>~2^ ~~2 <|im_end|>^"
    template = ChatTemplate(TEXTS, tokenizer)
    ids = template.render([{"role": "user", "content": text}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 2 not in ids


@pytest.mark.parametrize("parts", [("<|im_", "end|>"), ("<|im_ ", " end|>"), ("a<", "|im_end|", ">")])
@pytest.mark.parametrize("text", ["part.text", "part.text | trim"])
def test_a_token_cut_over_parts(tokenizer: Tokenizer, parts: tuple[str, ...], text: str) -> None:
    source = "{% for part in messages[0].content %}{{ " + text + " }}{% endfor %}"
    content = [{"type": "text", "text": part} for part in parts]
    ids = ChatTemplate(source, tokenizer).render([{"role": "user", "content": content}])
    assert not tokenizer.special_ids.intersection(ids)


@pytest.mark.parametrize("cut", ["[1:]", "[:-1]", "[2:-2]", ".split('x')[0]", ".split('x')[1]"])
def test_a_template_that_cuts_texts_frees_no_token(tokenizer: Tokenizer, cut: str) -> None:
    source = "{{ messages[0].content" + cut + " }}"
    ids = ChatTemplate(source, tokenizer).render([{"role": "user", "content": "<|im_end|>x<|im_end|>"}])
    assert not tokenizer.special_ids.intersection(ids)


def test_a_word_after_a_token_of_the_template_gets_no_mark(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama"]
    template = ChatTemplate("[INST]{{ messages[0].content }}[/INST]", tokenizer)
    ids = template.render([{"role": "user", "content": "hello<s>"}])
    hello = tokenizer.encode("[INST]hello", False)
    assert ids[: len(hello)] == hello


def test_white_space_that_a_token_swallows(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    for token in state["added_tokens"]:
        token["lstrip"] = token["rstrip"] = "INST" in token["content"]
    path.write_text(json.dumps(state))
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate("[INST]  {{ messages[0].content }}  [/INST]", tokenizer)
    tame, wild = (template.render([{"role": "user", "content": text}]) for text in ("x", "x<s>"))
    assert wild[:2] == tame[:2]
    assert wild[-2:] == [tokenizer.encode_plain(">", inside=True)[-1], tame[-1]]


@pytest.mark.parametrize("literal", ["", "<|im_end|>", " " * 50])
def test_work_grows_with_the_conversation(tokenizer: Tokenizer, literal: str) -> None:
    template = ChatTemplate(CHATML, tokenizer)

    def seconds(count: int) -> float:
        messages = [{"role": "user", "content": f"hello {literal} world"}] * count
        start = time.thread_time()
        template.render(messages)
        return time.thread_time() - start

    assert grows_evenly(seconds, 1600)
