"""Prompts in all their forms, and what is none."""

import json
from pathlib import Path

import pytest

from quire.base.errors import CheckpointError, RequestError
from quire.config.sources import engine_config
from quire.engine.front import FrontEnd, as_list
from tests.engine.toy import make_toy

pytestmark = pytest.mark.plain


@pytest.mark.parametrize("one", ["a text", [1, 2, 3], {"prompt": "a text"}, {"prompt_token_ids": [1]}])
def test_one_prompt_or_several(one):
    assert as_list(one) == [one]
    assert as_list([one, one]) == [one, one]
    assert as_list((one,)) == [one]


@pytest.mark.parametrize("wrong", [5, None, {"a text"}, iter(["a text"])])
def test_what_is_no_prompt_says_what_one_is(wrong):
    with pytest.raises(RequestError, match="give a text, a list of token ids, or a dict"):
        as_list(wrong)


HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> FrontEnd:
    """Of a model whose chat template is damaged, which harms only who wants it."""
    folder = make_toy(tmp_path_factory.mktemp("front"))
    (folder / "chat_template.jinja").write_text("{% if")
    return FrontEnd(engine_config(model=folder))


def test_another_template_and_what_it_knows_count(front: FrontEnd) -> None:
    source = "{{ messages[0].content }}{{ mood }}"
    encode = front.tokenizer.encode
    assert front.encode_chat(HI, chat_template=source, mood="!") == encode("hi!", add_special_tokens=False)
    made = front.encode_chat(HI, chat_template=source, chat_template_kwargs={"mood": "?"}, mood="!")
    assert made == encode("hi?", add_special_tokens=False)
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        front.encode_chat(HI)


def test_a_tokenizer_of_its_own_brings_its_template(front: FrontEnd, tmp_path: Path) -> None:
    tokenizer = make_toy(tmp_path)
    (tokenizer / "chat_template.jinja").write_text("its own")
    found = FrontEnd(engine_config(model=front.model.path, tokenizer=tokenizer)).chat_template
    assert found is not None and found.source == "its own"


def test_what_a_prompt_holds_besides_is_not_passed_over(front: FrontEnd) -> None:
    assert front._read({"prompt": "a", "multi_modal_data": None})[0] == "a"
    with pytest.raises(RequestError, match="'multi_modal_data' is not served"):
        front._read({"prompt": "a", "multi_modal_data": {"image": 1}})


@pytest.mark.parametrize(
    "odd", [{"temperature": 5.0}, {"top_p": 0.0}, {"top_k": 50.0}, {"temperature": "0.7"}, {"max_new_tokens": 0}]
)
def test_a_default_that_no_request_could_ask_for_is_the_checkpoint_s_fault(odd: dict[str, object], tmp_path: Path):
    folder = make_toy(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(odd))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: .* --generation-config none"):
        FrontEnd(engine_config(model=folder))
    FrontEnd(engine_config(model=folder, generation_config="none"))
