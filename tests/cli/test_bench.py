"""`quire bench`: what is timed, what is counted, and what a result says about how it came about."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.base.age import process_age_s
from quire.base.errors import ConfigError, EngineError
from quire.checkpoint.facts import ModelFacts
from quire.cli import bench as command
from quire.cli.bench import percentile, run
from quire.cli.bench_kernels import kernels
from quire.cli.flags import load
from quire.config.fields import EngineConfig
from tests.cli.fakes import FakeModel, parsed

pytestmark = pytest.mark.plain


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = {"model_type": "llama", "vocab_size": 8, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def ticking(*steps: float) -> Callable[[], float]:
    """A clock that goes on by `steps`, one after the other, from the second reading on."""
    times = itertools.accumulate(steps, initial=0.0)
    return lambda: next(times)


def measure(model: FakeModel, clock: Callable[[], float], capsys: Any, *words: str) -> dict[str, Any]:
    assert run(parsed(command, *words), model.make, clock) == 0
    assert model.closed
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_throughput_counts_prompt_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    result = measure(model, ticking(2.0), capsys, "throughput", "--workload", "decode-64", "--scale", "0.125")
    assert (result["num_requests"], result["elapsed_time"]) == (8, 2.0)
    assert (result["total_num_tokens"], result["output_tokens"]) == (8 * (128 + 32), 8 * 32)
    assert (result["requests_per_second"], result["tokens_per_second"]) == (4.0, 640.0)
    assert result["output_tokens_per_second"] == 128.0


def test_throughput_warms_up_on_other_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    measure(model, ticking(1.0), capsys, "throughput", "--workload", "decode-64", "--scale", "0.125")
    warmup, timed = model.batches
    assert (len(warmup), len(timed)) == (1, 8)
    assert warmup[0] not in timed


def test_the_work_does_not_depend_on_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    measure(model, ticking(1.0), capsys, "throughput", "--scale", "0.01")
    for _, params in model.asked:
        assert (params.temperature, params.ignore_eos, params.detokenize) == (0.0, True, False)


def test_latency_times_each_batch(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    # Two readings per batch: while it runs 1, 2, 3, 4 s pass, and nothing in between.
    words = ("latency", "--scale", "0.1", "--num-iters", "4", "--num-iters-warmup", "1")
    result = measure(model, ticking(1, 0, 2, 0, 3, 0, 4), capsys, *words)
    assert result["latencies"] == [1, 2, 3, 4]
    assert (result["avg_latency"], result["percentiles"]["50"]) == (2.5, 2.5)
    assert list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert len(model.batches) == 5
    assert len({tuple(batch[0]) for batch in model.batches}) == 5


def test_a_result_says_how_it_came_about(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = (
        "throughput",
        "m",
        "--scale",
        "0.01",
        "--output-json",
        str(file),
        "--load-format",
        "dummy",
        "--dtype=float32",
    )
    result = measure(FakeModel(vocab_size=5000), ticking(1.0), capsys, *words)
    assert (result["kind"], result["workload"], result["workload_seed"]) == ("throughput", "mixed", 0)
    assert (result["scale"], result["vocabulary"], result["model"]) == (0.01, 5000, "m")
    assert (result["load_format"], result["device"], result["dtype"]) == ("dummy", "cpu", "float32")
    assert json.loads(file.read_text()) == result


def test_tokens_fit_the_models_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(vocab_size=300)
    measure(model, ticking(1.0), capsys, "throughput", "--scale", "0.05")
    assert max(token for batch in model.batches for prompt in batch for token in prompt) < 300


def test_a_workload_beyond_the_context_names_a_scale_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(max_model_len=512)
    with pytest.raises(ConfigError, match=r"needs 1280 tokens of context and this engine has 512; give --scale 0\.38"):
        measure(model, ticking(1.0), capsys, "throughput", "--workload", "decode-64")
    assert model.closed and not model.batches
    measure(model, ticking(1.0), capsys, "throughput", "--workload", "decode-64", "--scale", "0.38")


def test_requests_that_end_early_spoil_the_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="gave 255 tokens of 256"):
        measure(FakeModel(short_by=1), ticking(1.0), capsys, "latency")


@pytest.mark.parametrize("words", [["--num-iters", "0"], ["--num-iters-warmup", "-1"]])
def test_wrong_counts_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--num-iters must be at least 1"):
        run(parsed(command, "latency", *words), FakeModel().make)


@pytest.mark.parametrize("words", [[], ["speed"]])
def test_the_kind_must_be_known(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--help lists the flags"):
        parsed(command, *words)


@pytest.mark.parametrize(
    ("values", "p", "expected"), [([3.0], 99, 3.0), ([1.0, 2.0], 50, 1.5), ([4.0, 1.0, 3.0, 2.0, 5.0], 90, 4.6)]
)
def test_percentiles_are_numpys(values: list[float], p: float, expected: float) -> None:
    assert percentile(values, p) == pytest.approx(expected)


def test_startup_counts_from_the_start_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel()
    before, now = process_age_s(), time.time()
    result = measure(model, time.perf_counter, capsys, "startup", "m")
    assert before <= result["ready_s"] <= process_age_s()
    assert now <= result["ready_at"] <= time.time() and result["first_token_s"] > 0
    assert (result["kind"], result["model"], result["timeline"]) == ("startup", "m", {})
    assert [params.max_tokens for _, params in model.asked] == [1]


def test_the_age_of_a_process_is_exact() -> None:
    code = "from quire.base.age import process_age_s; print(process_age_s())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < time.monotonic() - started + 0.02


def test_kernels_measures_the_step_that_was_asked_for(checkpoint: Path) -> None:
    asked: list[object] = []

    def measure(engine: EngineConfig, facts: ModelFacts, *sizes: int) -> list[dict[str, object]]:
        asked.append((engine.model.model, facts.path, *sizes))
        return [{"op": "linear"}]

    args = parsed(command, "kernels", str(checkpoint), "--rows", "8", "--context", "20")
    result = kernels(args, load(args)[0].engine, measure)
    assert asked == [(str(checkpoint), str(checkpoint), 8, 1, 20)]
    assert result["ops"] == [{"op": "linear"}] and (result["rows"], result["tokens"], result["context"]) == (8, 1, 20)


def test_kernels_refuses_an_empty_step(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="--rows and --tokens must be at least 1"):
        run(parsed(command, "kernels", str(checkpoint), "--rows", "0"))
