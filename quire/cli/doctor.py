"""`quire doctor`: what was found, who computes what, and what is in the way, with the command that fixes it.

Never imports torch: a child process looks (`child`). Ends with exit code 1 if something is in the way.
"""

import argparse
import platform as python_platform
import sys
from importlib import metadata

import psutil

from quire.base.interpreter import sources_of
from quire.cli.child import ask
from quire.config.sources import load
from quire.messages.survey import OpReport, Survey, Trouble
from quire.version import __version__

GIB = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The device and kernels to judge, as `quire serve` takes them."""
    parser.add_argument("--device", metavar="DEVICE", help="judge this device: auto, cpu, cuda, cuda:N, xpu, a UUID")
    parser.add_argument("--kernels", metavar="NAME", help="judge these kernels: auto, reference, torch_native, ...")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something is in the way, else 0. Raises ConfigError for a setting that means nothing."""
    asked = {name: value for name, value in (("device", args.device), ("kernels", args.kernels)) if value is not None}
    wanted = load(asked)[0].engine.device
    survey = ask(wanted.device, wanted.kernels)
    troubles = [*missing_packages(), *survey.troubles]
    print("\n".join([*machine(), *device(survey), *ops(survey.ops), *verdict(troubles)]))
    return 1 if troubles else 0


def machine() -> list[str]:
    """Lines on quire, Python and memory."""
    memory = psutil.virtual_memory()
    return [
        f"quire       {__version__}",
        f"python      {python_platform.python_version()} on {python_platform.platform()}",
        *bytecode(),
        f"memory      {memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB",
        f"processor   {psutil.cpu_count(logical=False) or '?'} cores, {psutil.cpu_count()} threads",
    ]


def bytecode() -> list[str]:
    """A line where Python keeps none of torch."""
    folder = sources_of("torch")
    if folder is None:
        return []
    compile_it = f"{sys.executable} -m compileall -q {folder}"
    return [f"            keeps no bytecode of torch, so each start takes a second or two longer; fix: {compile_it}"]


def device(survey: Survey) -> list[str]:
    """Lines on torch, the device and its kernels, as far as they were found."""
    lines = []
    if torch := survey.torch:
        distributed = "with" if torch.distributed else "without (one device only)"
        lines.append(f"torch       {torch.version}, built for {torch.build}, {distributed} torch.distributed")
        lines.append(f"            CPU: {torch.cpu_capability}, {torch.threads} threads")
        lines += [f"            GPU {gpu}" for gpu in torch.gpus]
    if found := survey.platform:
        size = f"{found.total_bytes / GIB:.1f} GiB"
        lines.append(f"device      {found.device}: {found.device_name} ({found.name}, {found.arch}, {size})")
        lines.append(f"dtypes      {', '.join(found.dtypes)}")
        lines.append(f"kernels     {', '.join([*found.providers, 'reference'])}")
        lines += [f"            cpu: compiled, with {survey.native}"] if survey.native else []
        lines += [f"            not {name}: {reason}" for name, reason in found.refused.items()]
        lines += [f"warning     {sentence}" for sentence in found.warnings]
    return lines


def ops(reports: list[OpReport]) -> list[str]:
    """A table: op, provider, why others were refused."""
    if not reports:
        return []
    width = max(len(report.op) for report in reports)
    lines = ["", "op by op"]
    for report in reports:
        refused = "; ".join(f"not {name}: {reason}" for name, reason in report.refused.items())
        lines.append(f"  {report.op:<{width}}  {_providers(report):<14}  {refused}".rstrip())
    return lines


def _providers(report: OpReport) -> str:
    """The provider, or each with its number of sample cases where they share the work."""
    if len(report.providers) == 1:
        return next(iter(report.providers))
    return ", ".join(
        f"{name} ({cases} of {sum(report.providers.values())})" for name, cases in report.providers.items()
    )


def verdict(troubles: list[Trouble]) -> list[str]:
    """The closing lines: what is in the way, or that nothing is."""
    if not troubles:
        return ["", "Nothing is in the way."]
    lines = ["", f"In the way: {len(troubles)}"]
    for trouble in troubles:
        lines += [f"  - {trouble.what}", f"    fix: {trouble.fix}"]
    return lines


def missing_packages() -> list[Trouble]:
    """Core dependencies that are not installed. Those with a marker are left to pip, and torch to the survey."""
    try:
        requirements = metadata.requires("quire") or []
    except metadata.PackageNotFoundError:
        return [Trouble("quire runs from a folder and is not installed.", "pip install .")]
    names = [_name(line) for line in requirements if ";" not in line]
    return [
        Trouble(f"The package {name} is missing.", f"pip install {name}")
        for name in names
        if name != "torch" and not _is_installed(name)
    ]


def _name(requirement: str) -> str:
    """`numpy` from `numpy>=1.26`."""
    end = next((i for i, char in enumerate(requirement) if not (char.isalnum() or char in "-_.")), len(requirement))
    return requirement[:end]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
