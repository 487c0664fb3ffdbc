"""The one validator: each refusal names its field, each acceptance keeps what was asked."""

from typing import Any

import pytest

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.messages.request import Request, Scheduling
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.messages.validate import MAX_BAD_WORD_TOKENS, FrontFacts, make_request
from quire.messages.wire import EngineFacts

pytestmark = pytest.mark.plain

VOCAB = 256
FACTS = EngineFacts(
    version="0",
    max_model_len=64,
    vocab_size=VOCAB,
    max_num_seqs=4,
    max_prompt_len=60,
    max_logprobs=20,
    layout=Layout([GroupLayout(StateSpec(8), 1, 16, 5)], 64),
    device="cpu",
    dtype="float32",
    timeline={},
)
NAN, INF = float("nan"), float("inf")


def encode(text: str) -> list[int]:
    return list(text.encode())


def make(
    prompt: Any = (1, 2, 3), *, in_process: bool = False, priority: Any = 0, salt: Any = "", **params: Any
) -> Request:
    front, scheduling = FrontFacts([0], encode, in_process), Scheduling(priority, salt)
    return make_request("r", prompt, SamplingParams(**params), FACTS, front, scheduling)


REFUSED: list[tuple[str, Any]] = [
    *[("temperature", v) for v in (-0.1, 2.0001, NAN, INF, "1", True, None)],
    *[("top_p", v) for v in (0, -1, 1.0000001, NAN, INF)],
    *[("min_p", v) for v in (-0.01, 1.01, NAN)],
    *[("presence_penalty", v) for v in (2.1, -2.1, NAN)],
    *[("frequency_penalty", v) for v in (2.1, -2.1, INF)],
    *[("repetition_penalty", v) for v in (0, -1, INF, NAN, 1e-30)],
    *[("top_k", v) for v in (-2, 1.0, True, "5", 2**63)],
    *[("n", v) for v in (0, -1, 129, 10**8, True, 1.0, "3", None)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 2**64, 10**500, 1.0, True)],
    *[("max_tokens", v) for v in (0, -1, True, 2.0)],
    *[("min_tokens", v) for v in (-1, 17, 2**31 - 1, True)],
    *[("logprobs", v) for v in (-1, 21, True)],
    *[("prompt_logprobs", v) for v in (-1, 21, True)],
    *[("stop", v) for v in ("", [""], ["a", ""], ["a"] * 17, ["a" * 4097], ["é" * 2049], [1], 7, {"a": 1})],
    *[("stop_token_ids", v) for v in ([VOCAB], [-1], [True], ["1"], [1] * 1025, 5)],
    *[("allowed_token_ids", v) for v in ([], [VOCAB + 5], [-1], [1.0], "ab")],
    *[("logit_bias", v) for v in ({VOCAB: 1}, {-1: 1}, {2**40: 1}, {"1": 1}, {1: 101}, {1: -100.5}, {1: NAN}, [1])],
    ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    *[("bad_words", v) for v in ([""], ["  "], [1], ["x"] * 1025, "word")],
    *[("ignore_eos", v) for v in (1, "yes", None)],
    ("skip_special_tokens", 0),
    ("include_stop_str_in_output", "no"),
    *[("truncate_prompt_tokens", v) for v in (0, -2, 65, True, 1.0)],
    ("logits_processors", [print]),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda v: str(v)[:24])
def test_refused_values_name_their_field(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as error:
        make(**{name: value})
    assert error.value.param == name
    assert name in error.value.message
    assert len(error.value.message) < 300


ACCEPTED: list[tuple[str, Any]] = [
    *[("temperature", v) for v in (0, 2, 0.5)],
    *[("top_p", v) for v in (1, 1e-9)],
    *[("min_p", v) for v in (0, 1)],
    *[("n", v) for v in (1, 128)],
    *[("seed", v) for v in (None, 0, 2**63 - 1, -(2**63))],
    *[("stop", v) for v in (None, [], "a", ["a"] * 16, ["a" * 4096])],
    *[("stop_token_ids", v) for v in (None, [], [0, VOCAB - 1])],
    *[("allowed_token_ids", v) for v in (None, [0], [VOCAB - 1])],
    *[("logit_bias", v) for v in (None, {}, {0: 100, VOCAB - 1: -100.0})],
    *[("logprobs", v) for v in (None, 0, 20)],
    *[("prompt_logprobs", v) for v in (None, 0, 20)],
]


@pytest.mark.parametrize(("name", "value"), ACCEPTED, ids=lambda v: str(v)[:24])
def test_accepted_values_are_kept(name: str, value: Any) -> None:
    assert getattr(make(**{name: value}).params, name) == value


@pytest.mark.parametrize("prompt", [[], [-1], [VOCAB], [1.5], [True], ["a", 1], "text", None, [2**70]], ids=str)
def test_refused_prompts(prompt: Any) -> None:
    with pytest.raises(RequestError) as error:
        make(prompt)
    assert error.value.param == "prompt"


def test_max_tokens_fits_the_context() -> None:
    assert make(max_tokens=None).params.max_tokens == 61
    assert make(max_tokens=10**9).params.max_tokens == 61
    assert make(max_tokens=5).params.max_tokens == 5


@pytest.mark.parametrize("length", [61, 64, 65])
def test_long_prompts_are_refused_with_the_words_that_clients_match(length: int) -> None:
    with pytest.raises(RequestError) as error:
        make([1] * length)
    assert error.value.code == "context_length_exceeded"
    assert error.value.message.startswith("This model's maximum context length is 64 tokens. However, ")
    assert str(length) in error.value.message


def test_the_longest_prompt_leaves_room_to_answer() -> None:
    assert make([1] * 60, max_tokens=None).params.max_tokens == 4


def test_truncation_keeps_the_end_of_the_prompt() -> None:
    long = list(range(200))
    assert make(long, truncate_prompt_tokens=3).token_ids == [197, 198, 199]
    assert make(long, truncate_prompt_tokens=-1, max_tokens=10).token_ids == long[-54:]
    assert make(long, truncate_prompt_tokens=-1, max_tokens=None).token_ids == long[-60:]


def test_top_k_has_one_word_for_all() -> None:
    assert [make(top_k=k).params.top_k for k in (-1, 0, 1, VOCAB - 1, VOCAB, 2**31)] == [0, 0, 1, VOCAB - 1, 0, 0]


def test_a_bad_word_is_not_as_long_as_a_text() -> None:
    """Each step looks back as far as the longest of all rows' words."""
    most = MAX_BAD_WORD_TOKENS
    assert len(make(bad_words=["n" * (most - 1)]).bad_words_ids[0]) == most - 1
    with pytest.raises(RequestError, match=f"is {most + 1} tokens; a word may have {most}") as refused:
        make(bad_words=["no", "n" * most])
    assert refused.value.param == "bad_words"


def test_bad_words_are_spelled_with_and_without_space() -> None:
    assert make(bad_words=["no"]).bad_words_ids == [[110, 111]], "the spaced bytes end with the plain ones"
    merged = {"no": [1], " no": [2]}
    front = FrontFacts(encode=lambda text: merged[text])
    request = make_request("r", [1], SamplingParams(bad_words=["no"]), FACTS, front)
    assert request.bad_words_ids == [[1], [2]]
    with pytest.raises(RequestError, match="tokenizer"):
        make_request("r", [1], SamplingParams(bad_words=["no"]), FACTS, FrontFacts())


def test_stop_strings_need_text() -> None:
    with pytest.raises(RequestError, match="detokenize"):
        make(stop="a", detokenize=False)


@pytest.mark.parametrize("salt", ["x" * 129, 5, None])
def test_refused_salts(salt: Any) -> None:
    with pytest.raises(RequestError) as error:
        make(salt=salt)
    assert error.value.param == "cache_salt"


@pytest.mark.parametrize("priority", [2**31, True, 1.0])
def test_refused_priorities(priority: Any) -> None:
    with pytest.raises(RequestError) as error:
        make(priority=priority)
    assert error.value.param == "priority"


def test_numbers_too_long_to_print_are_refused_all_the_same() -> None:
    for name in ("seed", "temperature", "max_tokens"):
        value = -(10**5000) if name == "max_tokens" else 10**5000
        with pytest.raises(RequestError, match="more than 20 digits"):
            make(**{name: value})


def test_callables_pass_in_process_only() -> None:
    assert make(logits_processors=[print], in_process=True).params.logits_processors == [print]


def test_the_request_carries_what_was_asked() -> None:
    request = make([5, 6], priority=-3, salt="tenant", temperature=0.5, seed=7)
    assert (request.id, request.token_ids, request.eos_token_ids) == ("r", [5, 6], [0])
    assert (request.priority, request.cache_salt) == (-3, "tenant")
    assert (request.params.temperature, request.params.seed) == (0.5, 7)


def test_the_senders_params_are_not_changed() -> None:
    params = SamplingParams(max_tokens=None, top_k=-1)
    make_request("r", [1], params, FACTS, FrontFacts())
    assert (params.max_tokens, params.top_k) == (None, -1)
