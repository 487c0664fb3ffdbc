"""`TorchProbe`: what torch says about itself and its devices. The only file of this folder that touches torch.

It takes the torch module as an argument, so tests pass a stand-in for any machine. Nothing is asked before it is
needed: a run on the CPU never wakes a GPU. No vendor management library (NVML, amdsmi) is used.
"""

import importlib
import warnings
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from quire.base.errors import PlatformError
from quire.config.spec import PlatformName
from quire.platforms.host import Host, look


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU in torch's words.

    Attributes:
        index: torch's index, after CUDA_VISIBLE_DEVICES and its like.
        capability: (major, minor) on NVIDIA; AMD and Intel have no use for it.
        arch: "gfx942" on AMD, else empty.
        total_bytes: its memory; all of the machine's where it shares it (unified memory).
        unified: it has no memory of its own.
        uuid: lower case, without prefix.
    """

    index: int
    name: str
    capability: tuple[int, int] = (0, 0)
    arch: str = ""
    total_bytes: int
    unified: bool = False
    uuid: str = ""


class TorchProbe:
    """Asks torch, once each, and remembers."""

    def __init__(self, torch: ModuleType, host: Host) -> None:
        self.host = host
        self._torch = torch
        self.failure: str | None = None

    @classmethod
    def here(cls) -> "TorchProbe":
        """This machine's torch. Raises PlatformError if torch cannot be imported."""
        try:
            torch = importlib.import_module("torch")
        except Exception as error:
            raise PlatformError(
                f"torch cannot be imported ({type(error).__name__}: {error}); try: pip install --force-reinstall torch"
            ) from error
        return cls(torch, look())

    @property
    def version(self) -> str:
        """torch's version, with its local part ("2.13.0+cpu")."""
        return str(self._torch.__version__)

    @property
    def build(self) -> PlatformName:
        """What this torch was built for."""
        known = vars(self._torch.version)
        # A ROCm build also answers to the name cuda, so hip is asked first.
        names: dict[str, PlatformName] = {"hip": "rocm", "cuda": "cuda", "xpu": "xpu"}
        return next((name for key, name in names.items() if known.get(key)), "cpu")

    @property
    def has_distributed(self) -> bool:
        """This torch can talk between processes (some builds leave torch.distributed out)."""
        return "distributed" in vars(self._torch) and bool(self._torch.distributed.is_available())

    @property
    def cpu_capability(self) -> str:
        """Vector instructions that torch uses ("AVX512", "AVX2", "SVE256", ...); ATEN_CPU_CAPABILITY lowers it."""
        return str(self._torch.backends.cpu.get_cpu_capability())

    @property
    def threads(self) -> int:
        """CPU threads that torch computes with."""
        return int(self._torch.get_num_threads())

    @property
    def built_archs(self) -> list[str]:
        """Architectures that torch has machine code for; empty if it does not say."""
        return list(self._torch.cuda.get_arch_list()) if self.build in ("cuda", "rocm") else []

    @cached_property
    def gpus(self) -> list[Gpu]:
        """GPUs that torch can open. What went wrong, if anything, is then in `failure`; it never raises."""
        if self.build == "cpu":
            return []
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = self._xpus() if self.build == "xpu" else self._cudas()
        # Drivers and builds fail here with errors of every type; none of them may keep the CPU from being used.
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            return []
        if not found and said:
            self.failure = str(said[-1].message)
        return found

    def _cudas(self) -> list[Gpu]:
        cuda = self._torch.cuda
        return [self._cuda(index) for index in range(cuda.device_count())] if cuda.is_available() else []

    def _cuda(self, index: int) -> Gpu:
        seen = self._torch.cuda.get_device_properties(index)
        return Gpu(
            index=index,
            name=str(seen.name),
            capability=(int(seen.major), int(seen.minor)),
            # ROCm appends features: gfx942:sramecc+:xnack-
            arch=str(seen.gcnArchName).partition(":")[0] if self.build == "rocm" else "",
            total_bytes=int(seen.total_memory),
            unified=bool(seen.is_integrated),
            uuid=str(seen.uuid).lower(),
        )

    def _xpus(self) -> list[Gpu]:
        xpu = self._torch.xpu
        return [self._xpu(index) for index in range(xpu.device_count())] if xpu.is_available() else []

    def _xpu(self, index: int) -> Gpu:
        seen = self._torch.xpu.get_device_properties(index)
        return Gpu(index=index, name=str(seen.name), total_bytes=int(seen.total_memory), uuid=str(seen.uuid).lower())
