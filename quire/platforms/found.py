"""What the platform files speak in: a device that torch can use, and an obstacle in the way of one that it cannot.

Values only. Made by `cpu`, `cuda`, `rocm` and `xpu`; read by `detect` and by `quire doctor`.
"""

from dataclasses import dataclass, field

from quire.config.spec import PlatformName


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A device that torch can use, before kernels are picked for it.

    Attributes:
        platform: which file found it.
        device: torch's name of it ("cpu", "cuda:1"); never empty.
        title: the device's name for people.
        arch: "sm_90", "gfx942", "avx512", ...
        uuid: lower case, without the prefix "GPU-"; empty where torch tells none.
        total_bytes: memory of the device (of the machine, on a CPU).
        dtypes: types that it computes well, preferred first.
        page_size: tokens per page unless the user says otherwise.
        providers: kernel folders worth trying, best first, the implied reference left out.
        refused: kernel folders that cannot serve this device, each with the reason and the remedy.
        discouraged: kernel folders that are only tried when asked for by name, with the reason.
        warnings: sentences for the user.
        unusable: why torch cannot compute on it although it sees it, or None.
    """

    platform: PlatformName
    device: str
    title: str
    arch: str
    uuid: str = ""
    total_bytes: int
    dtypes: tuple[str, ...]
    page_size: int
    providers: tuple[str, ...]
    refused: dict[str, str] = field(default_factory=dict)
    discouraged: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unusable: "Obstacle | None" = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a device is not used: a sentence, and the command (or the step) that fixes it."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} To fix it: {self.fix}"
