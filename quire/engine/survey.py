"""A look at torch, the device and the ops, as a process of its own: `python -m quire.engine.survey DEVICE KERNELS`.

Prints one line of JSON (`messages.survey.Survey`) on standard output. Started by `quire doctor` and `quire collect-env`
through `cli/child.py`; what it cannot find out becomes a `Trouble`, not a traceback.
"""

import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

import msgspec

import quire.ops
from quire.base.errors import ConfigError, PlatformError
from quire.config.spec import PlatformFacts
from quire.messages.survey import OpReport, Survey, TorchReport, Trouble
from quire.ops.registry import OPS, Op, choose, load_providers
from quire.platforms import detect, in_the_way, native
from quire.platforms.probe import TorchProbe


def survey(device: str, kernels: str) -> Survey:
    """Look at everything, as far as it goes, for the device and kernels that were asked for."""
    try:
        probe = TorchProbe.here()
    except PlatformError as error:
        return Survey(troubles=[Trouble(str(error), "pip install --force-reinstall torch")])
    torch = report(probe, wake_gpus=device != "cpu")
    try:
        platform = detect(device, kernels, probe)
    except (PlatformError, ConfigError) as error:
        return Survey(torch=torch, troubles=[Trouble(str(error), "choose another --device or --kernels, as said")])
    # Who asks for the CPU by name misses no GPU.
    obstacles = in_the_way(probe) if platform.device == "cpu" and device != "cpu" else []
    troubles = [Trouble(one.what, one.fix) for one in obstacles]
    try:
        ops = list(op_reports(platform))
    except Exception as error:
        ops = []
        names = ", ".join([*platform.providers, "reference"])
        what = f"The kernels {names} cannot be judged ({type(error).__name__}: {error})."
        troubles.append(Trouble(what, "reinstall quire from where it came, or run with --kernels reference"))
    # Kernels that can be judged are loaded.
    instructions = native.load()[1] if ops and "cpu" in platform.providers else ""
    return Survey(torch=torch, platform=platform, ops=ops, troubles=troubles, native=instructions)


def report(probe: TorchProbe, wake_gpus: bool) -> TorchReport:
    """What torch says of itself; GPUs are only opened with `wake_gpus`."""
    gpus = probe.gpus if wake_gpus else []
    return TorchReport(
        version=probe.version,
        build=probe.build,
        distributed=probe.has_distributed,
        threads=probe.threads,
        cpu_capability=probe.cpu_capability,
        archs=probe.built_archs,
        gpus=[f"{gpu.index}: {gpu.name}, {gpu.total_bytes / 2**30:.1f} GiB" for gpu in gpus],
    )


def op_reports(platform: PlatformFacts) -> Iterator[OpReport]:
    """For each op, which provider serves its samples on this platform, and why those before it do not."""
    for module in pkgutil.iter_modules(quire.ops.__path__, "quire.ops."):
        importlib.import_module(module.name)
    load_providers(platform.providers)
    for name in sorted(OPS):
        yield _op_report(OPS[name], platform)


def _op_report(op: Op, platform: PlatformFacts) -> OpReport:
    choices = [choose(op, _on(spec, platform.device), platform.providers) for spec, _ in op.samples()]
    refused: dict[str, str] = {}
    for choice in choices:
        refused |= choice.refused
    return OpReport(op.name, dict(Counter(choice.provider for choice in choices)), refused)


def _on(spec: object, device: str) -> object:
    """The sample spec as it would be on `device`; samples are written for the CPU."""
    if is_dataclass(spec) and not isinstance(spec, type) and any(field.name == "device" for field in fields(spec)):
        return replace(spec, device=device)
    return spec


if __name__ == "__main__":
    print(msgspec.json.encode(survey(*sys.argv[1:3])).decode(), flush=True)
