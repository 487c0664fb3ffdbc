"""Models that run through transformers on a real GPU, with Triton's kernels, against their own runs on the CPU."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", "5.20")
from tests.gpu.test_models import DEVICE, LIMIT, PROVIDERS, apart, run, states, widened  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]

from transformers import AutoConfig  # noqa: E402

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
