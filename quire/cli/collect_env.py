"""`quire collect-env`: a description of this machine for a bug report, with secrets masked.

Works with torch missing or broken: a child process asks it (`child`). Reads nothing but the environment, /proc, /dev
and the metadata of packages.
"""

import argparse
import platform
import re
import sys
from importlib import metadata

import msgspec
import psutil

from quire.cli.child import ask
from quire.config import environ
from quire.messages.survey import TorchReport
from quire.platforms.host import look
from quire.version import __version__

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
TELLING = re.compile(
    r"(QUIRE|CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|ZE|SYCL|OMP|MKL|KMP|GOMP|ATEN|DNNL|ONEDNN|TORCH|PYTORCH|TRITON|HF)_.*"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|PYTHONHOME|CC"
)
VECTORS = re.compile(r"avx|amx|fma|f16c|sse4_2|asimd|sve|bf16|i8mm")
# fmt: off
PACKAGES = (
    "torch", "triton", "numpy", "safetensors", "tokenizers", "transformers", "huggingface-hub", "jinja2", "starlette",
    "uvicorn", "uvloop", "httptools", "msgspec", "pyzmq", "prometheus-client", "psutil", "pyyaml", "openai",
)
# fmt: on
MASK = "***"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as a bug report needs it.

    Attributes:
        cpu_flags: instruction sets that matter to kernels.
        gpu_drivers: makers of the GPUs whose drivers are loaded, whether or not torch can use them.
        torch: None where it cannot be imported; `troubles` then says why.
        device: what "auto" would take.
        packages: version of each package that matters and is installed.
        environment: variables that change how quire or torch runs.
    """

    quire: str
    python: str
    os: str
    cpu: str
    cpu_flags: list[str]
    cores: int | None
    cpu_threads: int | None
    memory_bytes: int
    free_memory_bytes: int
    gpu_drivers: list[str]
    torch: TorchReport | None
    device: str | None
    troubles: list[str]
    packages: dict[str, str]
    environment: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines for people")


def run(args: argparse.Namespace) -> int:
    """Print the report. Always 0: a machine with a broken torch is a report, too."""
    report = collect()
    as_json = msgspec.json.format(msgspec.json.encode(report)).decode()
    print(as_json if args.json else "\n".join(as_lines(report)))
    return 0


def collect() -> Report:
    """Look at everything."""
    memory, host, survey = psutil.virtual_memory(), look(), ask()
    return Report(
        quire=__version__,
        python=" ".join(sys.version.split()),
        os=f"{platform.platform()} {' '.join(platform.libc_ver())}".strip(),
        cpu=host.cpu,
        cpu_flags=sorted(flag for flag in host.cpu_flags if VECTORS.match(flag)),
        cores=psutil.cpu_count(logical=False),
        cpu_threads=psutil.cpu_count(),
        memory_bytes=memory.total,
        free_memory_bytes=memory.available,
        gpu_drivers=list(host.gpu_vendors),
        torch=survey.torch,
        device=survey.platform.device if survey.platform else None,
        troubles=[f"{trouble.what} Fix: {trouble.fix}" for trouble in survey.troubles],
        packages=packages(),
        environment=environment(environ.snapshot()),
    )


def packages() -> dict[str, str]:
    """Version of each package that matters and is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Of `variables` those that change how quire or torch runs, with secrets masked, also logins inside addresses."""
    telling = {name: value for name, value in sorted(variables.items()) if TELLING.fullmatch(name)}
    return {name: MASK if SECRET.search(name) else LOGIN.sub(MASK, value) for name, value in telling.items()}


def as_lines(report: Report) -> list[str]:
    """The report for people: `name: value`, with tables indented."""
    lines = []
    for name, value in msgspec.to_builtins(report).items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {_text(entry)}" for key, entry in value.items())]
        else:
            lines.append(f"{name}: {_text(value)}")
    return lines


def _text(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
