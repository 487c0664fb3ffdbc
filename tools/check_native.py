"""Checks the compiled CPU kernels beyond what the tests of this machine can: run by `make check-extras`.

    python tools/check_native.py [sanitizers] [emulators] [registers]

sanitizers: the driver tests/native/driver.cpp under AddressSanitizer and UBSan, and under ThreadSanitizer; with loops
in the place of AMX's instructions (where there is AVX-512 BF16), which no emulator knows.
emulators: the same driver for processors that this one is not: AVX2 without AVX-512, and NEON, under qemu-user.
registers: no function outside the dispatched ones may use registers that the plainest processor lacks.

What is missing on this machine (a compiler for AArch64, qemu-user, objdump) is said and left out; the rest must pass.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
CHECKS = ("groups", "step", "draw", "edit", "experts")
DRIVER = ["tests/native/driver.cpp", *(f"tests/native/{name}_checks.cpp" for name in CHECKS)]
DEBUG = ["-O1", "-g", "-DQCPU_EMULATE_AMX"]
SANITIZERS = {
    "address, undefined": [*DEBUG, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": [*DEBUG, "-fsanitize=thread"],
}
EMULATED = {
    "x86_64": ("g++", ["qemu-x86_64", "-cpu", "Haswell"]),
    "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64"]),
}
ROUNDS = {"sanitizers": "40", "emulators": "15"}
SYMBOL = re.compile(r"^[0-9a-f]+ <(.*)>:$")
WIDE = re.compile(r"%[yz]mm|%tmm|%k[0-7]|%xmm(1[6-9]|2\d|3[01])\b")


def main(wanted: list[str]) -> int:
    """Run the checks called `wanted`, or all; 1 if one fails."""
    checks = {"sanitizers": sanitizers, "emulators": emulators, "registers": registers}
    failed = [line for name in wanted or checks for line in checks[name]()]
    print("\n".join(failed))
    return 1 if failed else 0


def sanitizers() -> Iterator[str]:
    """The driver under each sanitizer."""
    for name, flags in SANITIZERS.items():
        yield from _driver(f"{name} sanitizer", platform.machine(), "g++", [], (flags, ROUNDS["sanitizers"]))


def emulators() -> Iterator[str]:
    """The driver for other processors."""
    for machine, (compiler, emulator) in EMULATED.items():
        plain = (["-O2", "-static"], ROUNDS["emulators"])
        yield from _driver(f"{' '.join(emulator)}", machine, compiler, emulator, plain)


def _driver(title: str, machine: str, compiler: str, emulator: list[str], how: tuple[list[str], str]) -> Iterator[str]:
    """Build the driver for `machine` with flags `how[0]` and run it for `how[1]` rounds."""
    missing = [name for name in (compiler, *emulator[:1]) if not shutil.which(name)]
    if missing:
        print(f"{title}: left out, there is no {' and no '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        program = Path(folder) / "driver"
        commands = _setup().commands([*_sources(), *DRIVER], machine)
        objects = [str(Path(folder) / name) for name in commands]
        compiles = (
            [compiler, *(flag for flag in command[:-1] if flag != "-O3"), *how[0], "-c", command[-1], "-o", made]
            for made, command in zip(objects, commands.values(), strict=True)
        )
        list(pool.map(_run, compiles))
        _run([compiler, *how[0], "-pthread", *objects, "-o", str(program)])
        done = subprocess.run([*emulator, str(program), how[1]], capture_output=True, text=True)
    print(f"{title}:\n{done.stdout.rstrip()}")
    if done.returncode:
        yield f"{title}: the driver ended with {done.returncode}\n{done.stderr[-3000:]}"


def registers() -> Iterator[str]:
    """Functions of the built library that use wide registers and are not dispatched."""
    library = ROOT / "quire/kernels/cpu/libquire_cpu.so"
    if not shutil.which("objdump") or platform.machine() != "x86_64":
        print("registers: left out, there is no objdump for x86-64")
        return
    text = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", str(library)], capture_output=True, text=True)
    text.check_returncode()
    scanned, symbol, guilty = 0, "", set()
    for line in text.stdout.splitlines():
        found = SYMBOL.match(line)
        if found:
            symbol, scanned = found[1], scanned + 1
        elif WIDE.search(line) and not _may(symbol, line):
            guilty.add(symbol)
    print(f"registers: {scanned} functions scanned")
    if not scanned:
        yield f"registers: {library} has no functions; build it first"
    yield from (f"registers: {symbol} uses wider registers than its processor has" for symbol in sorted(guilty))


def _may(symbol: str, line: str) -> bool:
    """Whether a function may use the registers of an instruction."""
    if "qcpu::amx::" in symbol:
        return True
    if "qcpu::avx512" in symbol:
        return "%tmm" not in line
    return "qcpu::avx2::" in symbol and not re.search(r"%zmm|%tmm|%k[0-7]|mm(1[6-9]|2\d|3[01])\b", line)


def _sources() -> list[str]:
    found = [*ROOT.glob("native/*.cpp"), *ROOT.glob("native/kernels/*.cpp")]
    return [str(path.relative_to(ROOT)) for path in sorted(found)]


def _setup() -> ModuleType:
    """setup.py, which knows the flags of each instruction set."""
    spec = importlib.util.spec_from_file_location("quire_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
