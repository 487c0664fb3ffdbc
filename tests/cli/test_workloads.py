"""The workloads are the published ones: the same tokens and lengths, drawn in the same order."""

import pytest

from quire.base.errors import ConfigError
from quire.cli.workloads import SHAPES, workload

pytestmark = pytest.mark.plain

PINNED = {
    # name: requests, first tokens, prompt tokens, output tokens, the very last prompt token
    "decode-1": (1, [63564, 64493, 10159, 61486], 128, 256, 44998),
    "decode-64": (64, [9402, 61615, 59173, 68028], 65536, 16384, 96260),
    "prefill": (64, [85972, 19897, 64232, 31362], 131072, 64, 73809),
    "long": (8, [41784, 36160, 54896, 11543], 256000, 1024, 19943),
    "prefix": (256, [87028, 22463, 74443, 98808], 540672, 16384, 29137),
    "mixed": (512, [8364, 81976, 22785, 13310], 296648, 283472, 35168),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_tokens_are_the_published_ones(name: str) -> None:
    works = workload(name)
    requests, first, prompt_tokens, output_tokens, last = PINNED[name]
    assert (len(works), works[0].prompt[:4], works[-1].prompt[-1]) == (requests, first, last)
    assert sum(len(work.prompt) for work in works) == prompt_tokens
    assert sum(work.output_tokens for work in works) == output_tokens


def test_every_workload_is_pinned() -> None:
    assert set(PINNED) == set(SHAPES)


def test_prompts_of_prefix_begin_alike() -> None:
    works = workload("prefix", scale=0.1)
    assert len({tuple(work.prompt[:205]) for work in works}) == 1
    assert len({tuple(work.prompt) for work in works}) == len(works) == 26


def test_scale_shrinks_requests_and_lengths() -> None:
    works = workload("decode-64", scale=0.05)
    assert {(len(work.prompt), work.output_tokens) for work in works} == {(51, 13)}
    assert len(works) == 3
    assert len(workload("decode-1", scale=0.001)[0].prompt) == 1


@pytest.mark.parametrize("vocabulary", [10, 1500, 8000])
def test_tokens_fit_a_small_vocabulary(vocabulary: int) -> None:
    ids = [token for work in workload("decode-64", scale=0.1, vocabulary=vocabulary) for token in work.prompt]
    assert min(ids) >= 0 and max(ids) < vocabulary and max(ids) > vocabulary / 2


def test_another_seed_gives_other_tokens() -> None:
    assert workload("decode-1", 1) != workload("decode-1", 0) == workload("decode-1")


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_a_wrong_scale_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale must be above 0 and at most 1"):
        workload("mixed", scale=scale)


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="decode-64"):
        workload("decode-2")
