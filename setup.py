"""Builds the kernels of `native/` into the package, as a library that `quire/platforms/native.py` loads.

`native/*.cpp` are compiled once, `native/kernels/*.cpp` once per instruction set (see native/isa.h). They need g++ (or
another compiler, named by CXX; CXXFLAGS go behind the flags here) and an x86-64 or AArch64 processor. Without, quire is
installed all the same and computes with torch's kernels; QUIRE_REQUIRE_NATIVE=1 makes that an error. Everything else is
in pyproject.toml.
"""

import os
import platform
import shlex
import shutil
import subprocess
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Inative"]
# The compiler takes its own headers for careless.
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")), "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
INSTRUCTION_SETS = {
    "x86_64": {
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_bf16": AVX512_BF16,
        "amx": [*AVX512_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
    },
    "aarch64": {"neon": []},
}
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
KERNELS = "kernels"


class BuildNative(build_ext):
    """Makes a plain shared library instead of a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        # A library that an earlier build left must not stand in for one that cannot be built now.
        if self.inplace:
            for ext in self.extensions:
                Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            # An editable installation is made again with each extra; of itself it keeps nothing of what it compiled.
            told = " ".join(os.environ.get(name, "") for name in ("CXX", "CXXFLAGS"))
            self.build_temp = str(Path("build", f"native-{zlib.crc32(told.encode()):08x}"))
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
        machine = MACHINES.get(platform.machine().lower())
        if machine is None:
            return f"they are written for x86-64 and AArch64, and this is {platform.machine()}"
        found = next((name for name in ("g++", "c++") if shutil.which(name)), None)
        compiler = shlex.split(os.environ.get("CXX", "")) or ([found] if found else [])
        if not compiler:
            return "no C++ compiler was found; install g++, or name one by CXX"
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # It appears under its name when it is whole: a process may be loading it.
        partial = target.with_suffix(".partial")
        made = {objects / name: command for name, command in commands(sources, machine).items()}
        compiles = {name: command for name, command in made.items() if self.force or not is_fresh(name, command[-1])}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = ([*compiler, *flags, *extra, "-c", "-o", str(name)] for name, flags in compiles.items())
            reasons = pool.map(run, jobs)
            reason = next((reason for reason in reasons if reason is not None), None)
        reason = reason or run([*compiler, "-shared", "-pthread", *map(str, made), "-o", str(partial)])
        if reason is None:
            partial.replace(target)
        return reason


def commands(sources: list[str], machine: str) -> dict[str, list[str]]:
    """Name of each object file to what the compiler is told about it."""
    made = {}
    for source in sources:
        path = Path(source)
        if path.parent.name != KERNELS:
            made[f"{path.stem}.o"] = [*FLAGS, source]
            continue
        for name, flags in INSTRUCTION_SETS[machine].items():
            made[f"{path.stem}-{name}.o"] = [*FLAGS, *flags, f"-DQCPU_ISA={name}", f"-DQCPU_{name.upper()}", source]
    return made


def is_fresh(made: Path, source: str) -> bool:
    """Whether an earlier build left this object, and neither its source nor any header nor this file is newer."""
    headers = [Path(__file__), *Path("native").rglob("*.h")]
    return made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in [Path(source), *headers])


def run(command: list[str]) -> str | None:
    """Run a command; None, or why it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]} cannot be run ({error})"
    return f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}" if done.returncode else None


class AnyPython(bdist_wheel):
    """The library knows nothing of Python, so one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "quire.kernels.cpu.libquire_cpu",
                sources=[
                    str(path) for folder in ("", KERNELS) for path in sorted(Path("native", folder).glob("*.cpp"))
                ],
                depends=[str(path) for path in sorted(Path("native").rglob("*.h"))],
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
    )
