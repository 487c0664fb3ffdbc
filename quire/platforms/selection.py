"""From what the user wrote after `--device` to one device, or to an error that says what would work."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from quire.base.errors import ConfigError, PlatformError
from quire.config.spec import PlatformName
from quire.platforms.found import Found, Obstacle

# torch calls AMD's GPUs cuda too, so both names open them; rocm opens nothing else.
KINDS = {"cuda": ("cuda", "rocm"), "rocm": ("rocm",), "xpu": ("xpu",)}
SPELLINGS = "auto, cpu, cuda, cuda:N, rocm, rocm:N, xpu, xpu:N, a GPU's number or its UUID"


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """What `--device` asks for: a kind of GPU or any, and which of them by number or by the start of its UUID."""

    platforms: tuple[str, ...] = tuple(name for name in get_args(PlatformName) if name != "cpu")
    index: int | None = None
    uuid: str = ""

    def admits(self, found: Found) -> bool:
        """Whether `found` is (one of) what was asked for."""
        number = found.device.partition(":")[2]
        return (
            found.platform in self.platforms
            and (self.index is None or number == str(self.index))
            and found.uuid.startswith(self.uuid)
        )


def parse(device: str) -> DeviceRequest:
    """Read a GPU's name. Raises ConfigError for one that means nothing."""
    text = device.strip().lower()
    if match := re.fullmatch(r"(cuda|rocm|xpu)(?::(\d+))?", text):
        kind, number = match.groups()
        return DeviceRequest(KINDS[kind], int(number) if number else None)
    if re.fullmatch(r"\d{1,3}", text):
        return DeviceRequest(index=int(text))
    if match := re.fullmatch(r"(?:gpu-|mig-)?([0-9a-f]{6}[0-9a-f-]*)", text):
        return DeviceRequest(uuid=match.group(1))
    raise ConfigError(f"device={device!r} is not the name of a device; use {SPELLINGS}")


def pick(device: str, wish: DeviceRequest, found: Sequence[Found], obstacles: Sequence[Obstacle]) -> Found:
    """The GPU that was asked for, one that torch can compute on before others.

    Raises PlatformError if it is not there, or if the start of a UUID fits several.
    """
    fitting = [one for one in found if wish.admits(one)]
    if not fitting:
        raise PlatformError(_absent(device, found, obstacles))
    if wish.uuid and len(fitting) > 1:
        raise PlatformError(f"device={device!r} fits {', '.join(one.uuid for one in fitting)}; write more of the UUID")
    return next((one for one in fitting if one.unusable is None), fitting[0])


def _absent(device: str, found: Sequence[Found], obstacles: Sequence[Obstacle]) -> str:
    if found:
        there = ", ".join(f"{one.device} ({one.title}{', GPU-' + one.uuid if one.uuid else ''})" for one in found)
        return f"device={device!r} is not here; torch sees {there}; use one of these or --device cpu"
    why = " ".join(map(str, obstacles)) or "torch finds no GPU on this machine."
    return f"device={device!r} cannot be used. {why} --device cpu works without a GPU"
