"""Models that run through transformers on a real GPU: what they give on the CPU, and what a graph of them gives."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", "5.20")
from tests.gpu.test_models import DEVICE, LIMIT, PAGE, PROVIDERS, SEED, apart, run, states, widened  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]

from transformers import AutoConfig  # noqa: E402

from quire.ops.samples import step_over  # noqa: E402
from tests.models.driver import Driver, moved  # noqa: E402
from tests.models.families import BASE  # noqa: E402
from tests.models.others import OTHER_DECODERS, OTHER_ENCODERS  # noqa: E402
from tests.pooling import encoders  # noqa: E402


def written(folder: Path, name: str, base, table, architecture: str) -> Path:
    """A config as transformers writes it, with what that fills in."""
    given = {key: value for key, value in {**base, **table[name]}.items() if value is not ...}
    full = json.loads(AutoConfig.for_model(name, **given).to_json_string(use_diff=False))
    more = {"model_type": name, "dtype": "float32", "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(widened({**full, **more})))
    return folder


def decoder(folder: Path, name: str) -> Path:
    return written(folder, name, BASE, OTHER_DECODERS, "AnyForCausalLM")


@pytest.mark.parametrize("name", OTHER_DECODERS)
def test_a_model_gives_what_it_gives_on_a_cpu(name, tmp_path):
    path = decoder(tmp_path, name)
    said, want = run(path, "cpu", torch.float32, [])
    assert apart(run(path, DEVICE, torch.float32, PROVIDERS, said)[1], want) < LIMIT


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_an_encoder_gives_what_it_gives_on_a_cpu(name, tmp_path):
    path = written(tmp_path, name, encoders.BASE, OTHER_ENCODERS, "AnyModel")
    assert apart(states(path, DEVICE, torch.float32, tuple(PROVIDERS)), states(path, "cpu", torch.float32, ())) < LIMIT


ON_A_GPU = pytest.mark.skipif(DEVICE != "cuda", reason="graphs are a GPU's")


def drives(path: Path) -> Driver:
    return Driver(path, PAGE, PROVIDERS, device=DEVICE, dtype=torch.bfloat16, seed=SEED)


@ON_A_GPU
@pytest.mark.parametrize("name", ["arcee", "diffllama", "dots1", "gemma3n_text", "minicpm3"])
def test_a_graph_gives_what_the_step_gives(name, tmp_path):
    driver = drives(decoder(tmp_path, name))
    assert all(choice.capturable for choice in driver.build.choices)
    for state in driver.build.states:
        for pool in state.pools:
            pool.zero_()
    made = step_over([1, 1, 1], [1, 1, 1], [[1], [2], [3]], PAGE)
    step = moved(
        replace(made, token_ids=torch.tensor([5, 9, 11]), groups=made.groups * len(driver.groups)), driver.device
    )

    def logits():
        return driver.model.logits(driver.model(replace(step, derived={})))

    with torch.inference_mode():
        logits()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = logits()
        step.token_ids.copy_(torch.tensor([7, 3, 80]))
        want = logits()
        graph.replay()
    assert apart(got.float().cpu(), want.float().cpu()) < LIMIT


@ON_A_GPU
@pytest.mark.parametrize("name", ["gptj", "phimoe"])
def test_what_attends_by_itself_or_waits_for_the_gpu_is_not_recorded(name, tmp_path):
    assert not all(choice.capturable for choice in drives(decoder(tmp_path, name)).build.choices)
