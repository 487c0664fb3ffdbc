"""What the operating system tells about the machine, without torch: processor, memory, GPU drivers, compiler.

A `Host` is a plain value, so a test describes any machine by writing one. GPUs are recognised by the files of their
drivers; no vendor library is loaded and no vendor program is run.
"""

import importlib.util
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from quire.config import environ
from quire.platforms import native

VISIBILITY = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

MEMORY_LIMITS = {
    "": ("sys/fs/cgroup", "memory.max"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
}
"""By the name that /proc/self/cgroup gives a hierarchy (the second version's has none): its mount, its limit's file."""

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine as its operating system shows it.

    Attributes:
        cpu: name of the processor.
        cpu_flags: instruction sets, as /proc/cpuinfo spells them.
        memory_bytes: memory that this process may ever have: the machine's, or its control group's limit.
        gpu_vendors: makers of the GPUs whose drivers are loaded: "NVIDIA", "AMD", "Intel".
        gpus_hidden: the user hid all GPUs by an empty visibility variable (CUDA_VISIBLE_DEVICES="").
        has_triton: the package `triton` is installed (it is not imported to find out).
        has_compiler: a C compiler and Python's headers are there, which Triton needs at first use.
        has_cudnn: the package `nvidia-cudnn-frontend` is installed (it is not imported to find out).
        has_native: quire's own CPU kernels were compiled when it was installed.
    """

    cpu: str = "unknown CPU"
    cpu_flags: frozenset[str] = frozenset()
    memory_bytes: int = 0
    gpu_vendors: tuple[str, ...] = ()
    gpus_hidden: bool = False
    has_triton: bool = False
    has_compiler: bool = False
    has_cudnn: bool = False
    has_native: bool = False


def look(root: Path = Path("/")) -> Host:
    """Look at this machine; `root` is where /proc, /dev and /sys hang."""
    cpuinfo = _cpuinfo(root)
    return Host(
        cpu=cpuinfo.get("model name") or platform.processor() or platform.machine() or "unknown CPU",
        cpu_flags=frozenset((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()),
        memory_bytes=min(psutil.virtual_memory().total, group_limit_bytes(root)),
        gpu_vendors=tuple(_gpu_vendors(root)),
        gpus_hidden=any(environ.read(name) in ("", "-1") for name in VISIBILITY),
        has_triton=importlib.util.find_spec("triton") is not None,
        has_compiler=has_compiler(),
        has_cudnn=importlib.util.find_spec("cudnn") is not None,
        has_native=native.is_built(),
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    path = root / "proc/cpuinfo"
    text = path.read_text(errors="replace") if path.exists() else ""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def group_limit_bytes(root: Path = Path("/")) -> int:
    """The least limit on memory of this process's control group and those around it; NO_LIMIT without one.

    A container sees its own group as the root; a service of systemd lies deeper, and so do groups within containers.
    """
    lines = _text(root / "proc/self/cgroup").splitlines()
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    limits = [NO_LIMIT]
    for controller, (mount, file) in MEMORY_LIMITS.items():
        base = root / mount
        own = base / paths.get(controller, "").lstrip("/")
        around = [place for place in (own, *own.parents) if place.is_relative_to(base)]
        limits += [int(said) for place in around if (said := _text(place / file).strip()).isdigit()]
    return min(limits)


def _text(file: Path) -> str:
    """What a file of the system says; nothing where it is not there."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _gpu_vendors(root: Path) -> Iterator[str]:
    """Makers of GPUs with a loaded driver. /dev/nvhost-gpu is Jetson's, /dev/dxg shows a GPU to Linux under Windows."""
    if any(
        (root / name).exists() for name in ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvhost-gpu", "dev/dxg")
    ):
        yield "NVIDIA"
    if (root / "dev/kfd").exists():
        yield "AMD"
    if any(_is_intel_card(node) for node in (root / "sys/class/drm").glob("renderD*/device")):
        yield "Intel"


def _is_intel_card(node: Path) -> bool:
    """An Intel GPU on a card of its own: slot 02.0 of bus 0 is the display part of an ordinary processor."""
    vendor = node / "vendor"
    return vendor.exists() and vendor.read_text().strip() == "0x8086" and node.resolve().name != "0000:00:02.0"


def has_compiler() -> bool:
    """Whether there is a C compiler where Triton looks for one, and Python's headers."""
    asked = environ.read("CC")
    names = ["gcc", "clang"] if asked is None else [asked]
    return any(shutil.which(name) for name in names) and Path(sysconfig.get_path("include"), "Python.h").exists()
