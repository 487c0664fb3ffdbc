"""The platforms with the torch that is really installed."""

import os
import subprocess
import sys

import pytest

from quire.base.errors import PlatformError
from quire.platforms import detect
from quire.platforms.probe import TorchProbe

pytestmark = pytest.mark.torch


def in_child(code: str, **environ: str) -> str:
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_the_cpu_is_found() -> None:
    facts = detect("cpu", "auto")
    assert facts.device == "cpu"
    assert facts.device_name
    assert facts.arch == TorchProbe.here().cpu_capability.lower().replace(" ", "_")
    assert facts.total_bytes > 1 << 28
    assert facts.dtypes[0] == "float32"


def test_auto_finds_something() -> None:
    assert detect("auto", "auto").device


def test_a_processor_held_to_avx2() -> None:
    code = "from quire.platforms import detect; f = detect('cpu', 'auto'); print(f.arch, *f.dtypes)"
    assert in_child(code, ATEN_CPU_CAPABILITY="avx2").split()[:2] in (["avx2", "float32"], ["default", "float32"])
    assert "bfloat16" not in in_child(code, ATEN_CPU_CAPABILITY="avx2")


def test_detecting_loads_no_vendor_library_and_no_kernels() -> None:
    code = (
        "import sys; from quire.platforms import detect; detect('auto', 'auto');"
        "print([m for m in sys.modules if m.split('.')[0] in ('pynvml', 'amdsmi', 'triton') or 'quire.kernels' in m])"
    )
    assert in_child(code) == "[]"


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PlatformError, match="pip install --force-reinstall torch"):
        detect("auto", "auto")
