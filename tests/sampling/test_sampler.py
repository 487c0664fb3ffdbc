"""What each setting does to a sampler in use: greedy, bans that follow the history, callables, errors, transfers."""

import pytest
import torch

from quire.messages.params import SamplingParams
from tests.sampling.rig import Rig

pytestmark = pytest.mark.torch

VOCAB = 50
GENERATOR = torch.Generator().manual_seed(11)
LOGITS = torch.randn(8, VOCAB, generator=GENERATOR) * 3


def greedy(**settings) -> SamplingParams:
    return SamplingParams(temperature=0.0, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "top_k": 1, "top_p": 0.1, "min_p": 1.0},
        {"temperature": 0.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 1e-4},
        {"temperature": 1e-38},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 1e-9},
        {"temperature": 2.0, "top_p": 1e-300},
        {"temperature": 2.0, "top_p": 1e-300, "top_k": 4},
        {"temperature": 2.0, "min_p": 1.0},
    ],
)
def test_what_is_greedy(settings):
    rig = Rig(VOCAB)
    for row in range(8):
        rig.begin(row, SamplingParams(**settings), seed=row)
    assert rig.step(LOGITS, list(range(8))) == LOGITS.argmax(-1).tolist()


def test_greedy_takes_the_first_of_equal_tokens():
    rig = Rig(VOCAB)
    rig.begin(0, greedy())
    rig.begin(1, SamplingParams(top_k=1))
    logits = torch.zeros(2, VOCAB)
    logits[:, [9, 30, 31]] = 5.0
    assert rig.step(logits, [0, 1]) == [9, 9]


def test_a_greedy_batch_costs_one_pass_over_the_logits():
    rig = Rig(VOCAB)
    for row in range(4):
        rig.begin(row, greedy(), seed=row)
    logits = LOGITS[:4].clone()
    large: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(isinstance(a, torch.Tensor) and a.numel() >= 4 * VOCAB for a in args):
                large.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        rig.sample(logits, [0, 1, 2, 3])
    assert large == ["aten.max.dim"]


def test_the_same_seed_gives_the_same_text_and_another_does_not():
    def text(seed: int) -> list[int]:
        rig = Rig(VOCAB)
        rig.begin(0, SamplingParams(temperature=2.0), seed=seed)
        return [rig.step(LOGITS[:1], [0])[0] for _ in range(20)]

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_no_end_before_min_tokens():
    rig = Rig(4)
    rig.begin(0, greedy(min_tokens=3, stop_token_ids=[2]), eos=(1,))
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0]])
    assert [rig.step(logits, [0])[0] for _ in range(5)] == [3, 3, 3, 1, 1]


def test_a_bad_word_is_never_completed_even_across_prompt_and_output():
    rig = Rig(6)
    rig.begin(0, greedy(), prompt=(4, 5), bad_words=((5, 2), (3, 1, 2), (0,)))
    logits = torch.tensor([[9.0, 7.0, 8.0, 1.0, 0.0, 0.0]])
    assert rig.step(logits, [0]) == [1]  # 0 is banned, and 2 would complete (5, 2)
    assert rig.step(logits, [0]) == [2]
    rig.begin(0, greedy(), prompt=(3, 1), bad_words=((5, 2), (3, 1, 2), (0,)))
    assert rig.step(logits, [0]) == [1]


def test_a_bad_word_longer_than_all_that_is_known_bans_nothing():
    rig = Rig(6)
    rig.history.fill_(2)
    rig.begin(0, greedy(), prompt=(2,), bad_words=((0, 0, 0, 2, 3), (2, 2, 4)))
    logits = torch.tensor([[0.0, 0.0, 0.0, 5.0, 9.0, 0.0]])
    assert rig.step(logits, [0]) == [4]


def test_ids_outside_the_vocabulary_reach_no_neighbour():
    rig = Rig(VOCAB)
    wild = greedy(min_tokens=5, stop_token_ids=[VOCAB + 1, -3], logit_bias={VOCAB: 9.0}, allowed_token_ids=[3, VOCAB])
    rig.begin(0, wild, bad_words=((VOCAB + 2,), (1, -1)))
    rig.begin(1, greedy())
    logits = torch.zeros(2, VOCAB)
    logits[1, :3] = torch.tensor([1.0, 3.0, 2.0])
    assert rig.step(logits, [0, 1]) == [3, 1]


def test_a_row_with_nothing_left_says_so_and_its_neighbour_goes_on():
    rig = Rig(VOCAB)
    rig.begin(0, SamplingParams(allowed_token_ids=[7], logprobs=2), bad_words=((7,),))
    rig.begin(1, greedy(allowed_token_ids=[7], logprobs=2))
    tokens, bad, logprobs, errors = rig.sample(LOGITS[:2], [0, 1])
    assert tokens == [0, 7]
    assert bad == []
    assert list(logprobs) == [1]
    assert list(errors) == [0]
    assert "no token is left" in errors[0]
    assert "allowed_token_ids" in errors[0]


def test_a_bias_of_minus_100_on_everything_still_samples():
    rig = Rig(VOCAB)
    rig.begin(0, greedy(logit_bias=dict.fromkeys(range(VOCAB), -100.0)))
    assert rig.step(LOGITS[:1], [0]) == [int(LOGITS[0].argmax())]


def test_callables_of_both_kinds_see_the_history():
    seen = []

    def two(generated, logits):
        seen.append((generated, logits.shape))
        logits[:] = -torch.inf
        logits[7] = 0.0
        return logits

    def three(prompt, generated, logits):
        seen.append((prompt, generated))
        return logits.roll(1)

    rig = Rig(VOCAB)
    rig.begin(0, greedy(logits_processors=[two, three]), prompt=(1, 2), output=(3,))
    assert [rig.step(LOGITS[:1], [0])[0] for _ in range(2)] == [8, 8]
    assert seen == [([3], (VOCAB,)), ([1, 2], [3]), ([3, 8], (VOCAB,)), ([1, 2], [3, 8])]


def test_a_default_argument_does_not_make_a_third():
    def two(generated, logits, scale=2.0):
        return -logits * scale

    rig = Rig(VOCAB)
    rig.begin(0, greedy(logits_processors=[two]))
    assert rig.step(LOGITS[:1], [0]) == [int(LOGITS[0].argmin())]


def test_a_callable_cannot_undo_what_is_allowed():
    rig = Rig(VOCAB)
    rig.begin(0, greedy(logits_processors=[lambda ids, x: torch.zeros_like(x)], allowed_token_ids=[40, 41]))
    assert rig.step(LOGITS[:1], [0]) == [40]


def _raises(ids, logits):
    raise KeyError("missing")


@pytest.mark.parametrize(
    "call, words",
    [
        (_raises, "_raises raised KeyError: 'missing'"),
        (lambda ids, x: None, "must return a tensor of shape (50,)"),
        (lambda ids, x: x[:3], "must return a tensor of shape (50,)"),
        (lambda ids, x: x * float("nan"), "NaN or +inf"),
        (lambda ids, x: x + float("inf"), "NaN or +inf"),
    ],
)
def test_the_error_of_a_callable_belongs_to_its_row(call, words):
    rig = Rig(VOCAB)
    rig.begin(0, greedy())
    rig.begin(1, SamplingParams(logits_processors=[call], logprobs=1))
    rig.begin(2, greedy(frequency_penalty=0.5))
    tokens, bad, logprobs, errors = rig.sample(LOGITS[:3], [0, 1, 2])
    assert list(errors) == [1]
    assert words in errors[1]
    assert [tokens[0], tokens[2]] == LOGITS[[0, 2]].argmax(-1).tolist()
    assert 0 <= tokens[1] < VOCAB
    assert not bad
    assert not logprobs


def test_bad_is_known_on_the_device():
    rig = Rig(VOCAB)
    rig.begin(0, greedy())
    rig.begin(1, SamplingParams())
    logits = LOGITS[:2].clone()
    logits[1, 3] = float("nan")
    samples = rig.sampler.sample(logits, [0, 1], torch.tensor([0, 1]), rig.history, rig.known)
    assert samples.bad.tolist() == [False, True]
    assert samples.tokens.tolist()[1] == 0
    assert samples.tokens.dtype == torch.int64


def test_a_penalty_that_leaves_float32_still_draws_among_what_it_lifts():
    rig = Rig(VOCAB)
    drawn = set()
    for seed in range(40):
        rig.begin(0, SamplingParams(repetition_penalty=1e-38), prompt=(3, 4), seed=seed)
        logits = torch.zeros(1, VOCAB)
        logits[0, [3, 4]] = torch.tensor([10.0, 20.0])
        drawn.add(rig.step(logits, [0])[0])
    assert drawn == {3, 4}
