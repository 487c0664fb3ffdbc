"""Which kernel folders run on a device: those installed, in the platform's order, less those that it refuses.

The folders of `quire/kernels` are the registry; nothing of them is imported here. `reference`, plain PyTorch, is always
there and always last. Called by `detect`.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.base.errors import ConfigError, PlatformError
from quire.platforms.found import Found

REFERENCE = "reference"
NOT_INSTALLED = "this version of quire has no such kernels"


@dataclass(frozen=True, slots=True)
class Selection:
    """Kernel folders to try, best first; those refused, with the reason; sentences for the user."""

    providers: list[str]
    refused: dict[str, str]
    warnings: list[str]


def installed() -> list[str]:
    """The kernel folders of this installation, the implied `reference` left out."""
    kernels = Path(__file__).parents[1] / "kernels"
    return sorted(module.name for module in pkgutil.iter_modules([str(kernels)]) if module.ispkg)


def select(kernels: str, found: Found, folders: Sequence[str]) -> Selection:
    """Pick kernel folders for a device.

    Args:
        kernels: "auto", "reference" or the name of one folder.
        found: the device.
        folders: the folders that are installed.

    Raises ConfigError for a name that is not installed, PlatformError for one that cannot run on the device.
    """
    if kernels == "auto":
        return _best(found, folders)
    if kernels == REFERENCE:
        return Selection([], {}, [])
    if kernels not in folders:
        known = ", ".join(["auto", REFERENCE, *folders])
        raise ConfigError(f"kernels={kernels!r}: {NOT_INSTALLED}; use one of {known}")
    if kernels in found.refused:
        works = [REFERENCE, *(name for name in folders if name not in found.refused)]
        raise PlatformError(
            f"kernels={kernels!r} cannot run on {found.title} ({found.arch}): {found.refused[kernels]}; "
            f"use --kernels auto, or one of {', '.join(works)}"
        )
    return Selection([kernels], {}, [])


def _best(found: Found, folders: Sequence[str]) -> Selection:
    refused = (
        {name: NOT_INSTALLED for name in found.providers if name not in folders} | found.refused | found.discouraged
    )
    chosen = [name for name in found.providers if name not in refused]
    # Slower kernels than the device deserves are never taken in silence.
    lost = [name for name in found.providers if name in folders and name in found.refused]
    warnings = []
    for name in lost:
        behind = found.providers[found.providers.index(name) :]
        instead = next((other for other in behind if other in chosen), REFERENCE)
        warnings.append(f"{name} kernels cannot be used: {found.refused[name]}; {instead} kernels run instead")
    return Selection(chosen, refused, warnings)
