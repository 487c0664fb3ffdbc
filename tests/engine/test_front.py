"""Prompts in all their forms, and what is none."""

import pytest

from quire.base.errors import RequestError
from quire.engine.front import as_list

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
