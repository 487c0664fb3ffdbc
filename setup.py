"""Builds the kernels of `native/` into the package, as a library that `quire/platforms/native.py` loads.

They need g++ (or another compiler, named by CXX) and an x86-64 processor. Without, quire is installed all the same and
computes with torch's kernels; QUIRE_REQUIRE_NATIVE=1 makes that an error. Everything else is in pyproject.toml.
"""

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"]


class BuildNative(build_ext):
    """Makes a plain shared library instead of a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        # A library that an earlier build left must not stand in for one that cannot be built now.
        if self.inplace:
            for ext in self.extensions:
                Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        reason = self._compile(ext.sources, target)
        if reason is None:
            return
        message = f"quire is built without its own CPU kernels, so torch's run instead: {reason}"
        if os.environ.get("QUIRE_REQUIRE_NATIVE") == "1":
            raise SystemExit(f"{message}. QUIRE_REQUIRE_NATIVE=1 does not allow that.")
        self.warn(message)

    def _compile(self, sources: list[str], target: Path) -> str | None:
        """None, or why there is no library."""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return f"they are written for x86-64, and this is {platform.machine()}"
        found = next((name for name in ("g++", "c++") if shutil.which(name)), None)
        compiler = shlex.split(os.environ.get("CXX", "")) or ([found] if found else [])
        if not compiler:
            return "no C++ compiler was found; install g++, or name one by CXX"
        target.parent.mkdir(parents=True, exist_ok=True)
        # It appears under its name when it is whole: a process may be loading it.
        partial = target.with_suffix(".partial")
        try:
            done = subprocess.run([*compiler, *FLAGS, *sources, "-o", str(partial)], capture_output=True, text=True)
        except OSError as error:
            return f"{compiler[0]} cannot be run ({error})"
        if done.returncode:
            return f"{shlex.join(compiler)} failed:\n{done.stderr[-2000:]}"
        partial.replace(target)
        return None


class AnyPython(bdist_wheel):
    """The library knows nothing of Python, so one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "quire.kernels.cpu.libquire_cpu",
            sources=["native/quire_cpu.cpp"],
            depends=[str(path) for path in sorted(Path("native").glob("*.inc"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
)
