"""What `quire` offers is enough to use it: every public name is there, and examples take theirs from nowhere else."""

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest

import quire
from quire.base import errors
from quire.config.fields import EngineConfig

pytestmark = pytest.mark.plain

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_public_name_is_there() -> None:
    assert all(getattr(quire, name) for name in quire.__all__)
    assert set(quire.__all__) <= set(dir(quire))
    caught = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"TransportError"}
    assert caught <= set(quire.__all__), "users catch errors"


@pytest.mark.parametrize("call", ["generate", "chat", "stream", "embed", "classify", "score", "reward", "encode"])
def test_what_calls_of_an_llm_take_and_give_is_public(call: str) -> None:
    said = str(inspect.get_annotations(getattr(quire.LLM, call)))
    named = set(re.findall(r"quire\.[\w.]*?\.([A-Z]\w+)", said))
    assert named and named <= set(quire.__all__)


def test_what_sampling_takes_is_public() -> None:
    said = str(quire.SamplingParams.__annotations__)
    assert set(re.findall(r"quire\.[\w.]*?\.([A-Z]\w+)", said)) <= set(quire.__all__)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_need_no_private_module(example: Path) -> None:
    tree = ast.parse(example.read_text())
    taken = {
        (node.module or "", n.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for n in node.names
    }
    assert {name for module, name in taken if module == "quire"} <= set(quire.__all__)
    assert not [module for module, _ in taken if module.startswith("quire.")]


def test_settings_come_by_name_or_as_a_config() -> None:
    with pytest.raises(quire.ConfigError, match="leave out max_model_len"):
        asyncio.run(quire.AsyncLLM.start(EngineConfig(), max_model_len=8))
    with pytest.raises(quire.ConfigError, match="did you mean max_model_len"):
        asyncio.run(quire.AsyncLLM.start(max_model_length=8))
