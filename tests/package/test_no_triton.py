"""`--kernels reference` generates text without ever importing Triton, also where Triton is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.toy import make_toy

pytestmark = pytest.mark.torch

GENERATE = """
import sys
from quire import LLM, SamplingParams
with LLM(sys.argv[1], kernels="reference", device="cpu", num_gpu_blocks_override=64) as llm:
    (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True), use_tqdm=False)
print(len(output.outputs[0].token_ids))
"""
WITHOUT_DISTRIBUTED = """
import sys, torch
for name in [name for name in sys.modules if name.split(".")[:2] == ["torch", "distributed"]]:
    sys.modules[name] = None
torch.distributed = None
del torch.distributed
"""


def generate(code: str, model: Path, path: Path) -> str:
    """What `code` prints, with `path` before all others on the module path."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_reference_kernels_never_import_triton(tmp_path: Path) -> None:
    # A triton that leaves a trace when it is imported, even if the import fails and is forgotten.
    (tmp_path / "triton").mkdir()
    trace = tmp_path / "imported"
    (tmp_path / "triton" / "__init__.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nraise ImportError('a trap')\n"
    )
    assert generate(GENERATE, make_toy(tmp_path / "toy"), tmp_path) == "4"
    assert not trace.exists()


def test_one_device_needs_no_torch_distributed(tmp_path: Path) -> None:
    assert generate(WITHOUT_DISTRIBUTED + GENERATE, make_toy(tmp_path / "toy"), tmp_path) == "4"
