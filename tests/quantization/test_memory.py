"""Quantizing while weights load never takes more memory than what is left and one shard, measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.models.checkpoints import make
from tests.quantization.checkpoints import SIZES

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux alone"),
]
NAMES = ("int8", "int4", "nvfp4")
LAYERS = 3
PROMPT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has memory given back when it is freed: a peak is then what was used at one time."""


def large(folder: Path) -> int:
    """A checkpoint of a shard for each of a few layers, in bfloat16; returns the bytes of one."""
    sizes = {**SIZES, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 8}
    make("llama", folder, **{**sizes, "num_hidden_layers": LAYERS})
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
        file.unlink()
    places = {name: f"model-{name.split('.')[2] if '.layers.' in name else 0}.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_the_peak_is_what_is_left_and_a_shard(tmp_path: Path) -> None:
    shard = large(tmp_path / "large")
    small = make("llama", tmp_path / "small", **SIZES)
    program = [sys.executable, "-m", "tests.quantization.peak_memory", str(small), str(tmp_path / "large"), *NAMES]
    ran = subprocess.run(program, capture_output=True, text=True, check=True, env={**os.environ, **PROMPT})
    full = LAYERS * shard
    for name, found in json.loads(ran.stdout).items():
        # A copy in full precision would show.
        assert found["held"] + shard < full and found["peak"] <= found["held"] + shard, (name, found, shard)
