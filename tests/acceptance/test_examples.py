"""What the documents show runs as it stands: the files of `examples/` and the Python of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.serving import serve

pytestmark = pytest.mark.multi

ROOT = Path(__file__).parents[2]
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["offline", "streaming"])
def test_examples(name):
    assert len(python(f"examples/{name}.py").split()) > 20


def test_the_readme_offline():
    (source,) = (block for block in README if "with LLM(" in block)
    assert len(python("-c", source).split()) > 10


def test_clients_of_a_server():
    (source,) = (block for block in README if "OpenAI(" in block)
    with serve("--num-gpu-blocks-override", "400") as served:
        assert len(python("examples/openai_client.py", f"{served.url}/v1").split()) > 5
        assert len(python("-c", source.replace("http://127.0.0.1:8000", served.url)).split()) > 5
