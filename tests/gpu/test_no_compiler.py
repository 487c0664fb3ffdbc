"""Where no C compiler is found, Triton's kernels are launched by quire itself, and tokens are the same."""

import json
import subprocess
import sys

import pytest

from quire.config import environ

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SCRIPT = """
import json
import triton
from quire import LLM, SamplingParams
prompts = [[i + 300, 7, 8] * (40 * i + 1) for i in range(6)]
asked = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
with LLM(device="cuda", dtype="float32", gpu_memory_utilization=0.3) as llm:
    tokens = [output.outputs[0].token_ids for output in llm.generate(prompts, asked, use_tqdm=False)]
    recorded = llm._running().executor.runner.allocated.steps.graphs.covers(6)
print(json.dumps([type(triton.runtime.driver.active).__module__, recorded, tokens]))
"""


def run(changed):
    """What the script found, in a process of its own; and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ.snapshot() | changed, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_tokens_are_the_same_and_start_up_says_so(tmp_path):
    (driver, recorded, tokens), said = run({"PATH": "/nowhere", "CC": "", "TRITON_CACHE_DIR": str(tmp_path)})
    assert driver == "quire.kernels.triton.driver" and recorded
    assert "quire launches the kernels itself" in said
    (driver, recorded, expected), said = run({})
    assert driver.startswith("triton.") and recorded and "launches the kernels itself" not in said
    assert tokens == expected
