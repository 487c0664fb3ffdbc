"""Products of matrices in the kernel that reads prompts run beside other work: nothing waits for each of them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]


def test_products_are_not_waited_for_one_by_one() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.asynchronous"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    products, waits = json.loads(done.stdout.splitlines()[-1])
    # Where the assembler must guard a sum, it waits after every product.
    assert 0 < 3 * waits < products
