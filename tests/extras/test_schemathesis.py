"""Schemathesis over our own OpenAPI document: whatever it makes up, no answer is a 5xx and every error is ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.serving import Serving

pytestmark = pytest.mark.extras

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,unsupported_method"


def test_nothing_that_fits_the_document_breaks_the_server(tmp_path: Path) -> None:
    with Serving() as running:
        words = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"]
        words += ["--checks", CHECKS, "--max-examples", "60", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
        ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        submitted = len(running.engine.submitted)
    (tmp_path / "report.txt").write_text(ran.stdout)
    assert ran.returncode == 0, f"see {tmp_path}/report.txt"
    # Some of what it made up was good enough to be served.
    assert submitted > 20
