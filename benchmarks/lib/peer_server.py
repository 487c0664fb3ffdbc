"""A peer's server whose API process is measured: vLLM's, over the smallest model that it takes."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from lib import shapes
from lib.null_server import MODEL, Server

START_S = 180
SMALLEST: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@contextmanager
def peer_server(python: str, port: int) -> Iterator[Server]:
    """vLLM's server of the environment of `python`, over a model of one layer with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SMALLEST))
        shapes.write_words(Path(folder), SMALLEST["vocab_size"])
        flags = ["--served-model-name", MODEL, "--load-format", "dummy", "--enforce-eager", "--max-model-len", "1024"]
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", port]
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        command = [python, *map(str, words), *flags, "--disable-log-stats", "--max-num-seqs", "256"]
        with subprocess.Popen(command, env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                _wait_for(url, process)
                yield Server(url, [psutil.Process(process.pid)])
            finally:
                process.terminate()
                process.wait(30)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the peer's server did not start; its log is above")
        time.sleep(0.5)
