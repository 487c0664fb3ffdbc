"""What the GPU table is made of besides measuring: counts of a shape, bounds, metrics, and the ledger's lines."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.lib import ledger, shapes
from benchmarks.lib.bounds import Bound, Ceilings, Replay
from benchmarks.lib.targets import TARGETS, VLLM_WALL_S, metric, value_of
from quire.cli.workloads import SHAPES, Work, workload

pytestmark = pytest.mark.plain

SLOW_MEMORY = Ceilings(read=1.0, matrix=float("inf"))
SLOW_ARITHMETIC = Ceilings(read=float("inf"), matrix=1.0)
COUNTS = shapes.Counts(
    layers=2, attention=100, mlp=300, expert=0, experts=0, chosen=0, head=1000, query_width=8, state_width=4
)


def of(name: str) -> shapes.Counts:
    return shapes.count(shapes.MODELS[name])


@pytest.mark.parametrize(
    ("name", "billions", "state_bytes"),
    [("qwen3-0.6b", 0.596, 114_688), ("llama-8b", 7.505, 131_072), ("qwen3-30b-a3b", 30.22, 98_304)],
)
def test_shapes_have_their_size(name: str, billions: float, state_bytes: int) -> None:
    c = of(name)
    parameters = c.layers * (c.attention + c.mlp + c.experts * c.expert) + c.head
    assert parameters / 1e9 == pytest.approx(billions, rel=1e-3)
    assert 2 * c.layers * c.state_width == state_bytes


def test_a_step_reads_weights_and_state_and_computes_each_token() -> None:
    # One prompt of 3 tokens, then 1 step on 4: weights are read twice, the state of 3 and 4 tokens.
    works = [Work([1, 2, 3], 2)]
    weights, state = 2 * (2 * 400 + 1000), 2 * 2 * 4
    assert Replay(COUNTS, SLOW_MEMORY).bound(works).nbytes == 2 * weights + state * (3 + 4)
    pairs = 1 + 2 + 3 + 4
    operations = 2 * (4 * 800 + 2 * 1000) + 4 * pairs * 2 * 8
    assert Replay(COUNTS, SLOW_ARITHMETIC).bound(works) == Bound(operations, 2 * weights + state * 7, operations)


def test_a_shared_head_is_computed_and_read_once() -> None:
    works = [Work([1, 2, 3, 4], 2), Work([1, 2, 3, 9], 2)]
    apart, shared = (Replay(COUNTS, SLOW_MEMORY).bound(works, head=head).nbytes for head in (0, 3))
    # In the step after the prompts; the prompts' own state is read by each either way.
    assert apart - shared == 3 * 2 * 2 * 4


def test_few_tokens_touch_few_experts() -> None:
    counts = of("qwen3-30b-a3b")
    one, many = (Replay(counts, SLOW_MEMORY).bound([Work([1], 2)] * n).nbytes for n in (1, 64))
    # Of 128 experts one token chooses 8; 64 tokens that choose independently leave out 128 * (120 / 128) ** 64 = 2.06.
    per_expert = 2 * counts.layers * counts.expert
    assert (many - one) / 2 / per_expert == pytest.approx(125.94 - 8, rel=0.01)


def test_no_target_is_beyond_the_bound() -> None:
    ceilings = Ceilings(read=4.8e12, matrix=0.99e15)
    for model, cells in TARGETS.items():
        for name in SHAPES:
            works = workload(name)
            bound = Replay(of(model), ceilings).bound(works, SHAPES[name].head).seconds
            value = value_of(name, bound, sum(len(w.prompt) for w in works), sum(w.output_tokens for w in works))
            best = min if metric(name)[1] == "s" else max
            assert best(value, cells[name].aim) == value, (model, name)
            assert VLLM_WALL_S[model][name] > bound


def test_the_command_leaves_out_where_results_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/a/gpu.py", "--ledger", "/x", "--models=m", "--commit=abc", "--repeat", "2"])
    assert ledger.command() == "python benchmarks/gpu.py --models=m --repeat 2"


def test_lines_are_appended_with_their_date(tmp_path: Path) -> None:
    for value in (1, 2):
        ledger.append(tmp_path / "new" / "l.jsonl", {"value": value})
    lines = [json.loads(line) for line in (tmp_path / "new" / "l.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [1, 2] and all("date" in line for line in lines)


def test_models_are_written_without_weights(tmp_path: Path) -> None:
    folder = shapes.write("llama-8b", tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
