"""What the device is, what it can do, which kernels to try on it, and why others are refused.

One file per kind of device, each with two functions: `devices(probe)` describes those that torch can open,
`obstacle(probe)` says why one that is plainly there cannot be opened. A platform is a value (`PlatformFacts`) that is
passed down, never a global.
Called by `engine/` and by `quire doctor`; knows nothing of models, ops or schedules.
"""

from quire.config.spec import PlatformFacts
from quire.platforms import cpu, cuda, rocm, xpu
from quire.platforms.found import Found, Obstacle
from quire.platforms.probe import TorchProbe
from quire.platforms.providers import installed, select
from quire.platforms.selection import parse, pick

__all__ = ["detect", "in_the_way"]

# GPUs before the CPU: the first usable device is what "auto" takes.
GPU_PLATFORMS = (cuda, rocm, xpu)


def detect(device: str, kernels: str, probe: TorchProbe | None = None) -> PlatformFacts:
    """Find the device and the kernels for it.

    Args:
        device: auto, cpu, cuda, cuda:N, rocm, rocm:N, xpu, xpu:N, a GPU's number or (the start of) its UUID.
        kernels: auto, reference, or a folder of `quire/kernels`.
        probe: what to ask about torch and the machine; None asks the real ones.

    "auto" never fails: an unknown GPU gets the reference kernels and a warning, a GPU that torch cannot use gets the
    CPU and a sentence that says so. Raises PlatformError if a device or kernels asked for by name cannot be had, or if
    torch cannot be imported; ConfigError if a name means nothing.
    """
    probe = probe or TorchProbe.here()
    found, warnings = _find(device.strip().lower(), probe)
    selection = select(kernels.strip(), found, installed())
    return PlatformFacts(
        name=found.platform,
        device=found.device,
        device_name=found.title,
        arch=found.arch,
        total_bytes=found.total_bytes,
        providers=selection.providers,
        refused=selection.refused,
        dtypes=list(found.dtypes),
        page_size=found.page_size,
        warnings=[*warnings, *found.warnings, *selection.warnings],
    )


def in_the_way(probe: TorchProbe) -> list[Obstacle]:
    """Why GPUs of this machine are not used: those that torch cannot open, then those that it opens in vain."""
    shut = [platform.obstacle(probe) for platform in GPU_PLATFORMS]
    return [one for one in [*shut, *(gpu.unusable for gpu in _gpus(probe))] if one is not None]


def _gpus(probe: TorchProbe) -> list[Found]:
    return [found for platform in GPU_PLATFORMS for found in platform.devices(probe)]


def _find(device: str, probe: TorchProbe) -> tuple[Found, list[str]]:
    """The device, and sentences about others that would have been better."""
    processor = next(cpu.devices(probe))
    if device == "cpu":
        return processor, []
    if device != "auto":
        chosen = pick(device, parse(device), _gpus(probe), in_the_way(probe))
        # It was asked for by name, so torch has the last word on whether it runs.
        return chosen, [str(chosen.unusable)] if chosen.unusable else []
    usable = [found for found in _gpus(probe) if found.unusable is None]
    if usable:
        return usable[0], []
    return processor, [f"Running on the CPU. {one}" for one in in_the_way(probe)]
