"""Stand-ins for torch on machines that the tests do not have. Only what `TorchProbe` may ask for is there."""

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from quire.platforms.host import Host
from quire.platforms.probe import TorchProbe

GIB = 1 << 30
CUDA_ARCHS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
ROCM_ARCHS = ["gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1201"]
GPU_HOST = Host(
    cpu="Some CPU",
    memory_bytes=64 * GIB,
    gpu_vendors=("NVIDIA",),
    has_triton=True,
    has_compiler=True,
    has_cudnn=True,
)
AMD_HOST = Host(cpu="Some CPU", memory_bytes=64 * GIB, gpu_vendors=("AMD",), has_triton=True, has_compiler=True)
CPU_HOST = Host(
    cpu="Some CPU",
    memory_bytes=16 * GIB,
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16"}),
    has_native=True,
)


def card(name: str, **properties: Any) -> SimpleNamespace:
    """What `torch.cuda.get_device_properties` returns."""
    plain = {"major": 9, "minor": 0, "total_memory": 80 * GIB, "is_integrated": 0, "uuid": "", "gcnArchName": ""}
    return SimpleNamespace(name=name, **(plain | properties))


H200 = card("NVIDIA H200", total_memory=141 * GIB, uuid="aaaaaaaa-0000-1111-2222-333333333333")
H200_2 = card("NVIDIA H200", total_memory=141 * GIB, uuid="aaaabbbb-0000-1111-2222-333333333333")
T4 = card("Tesla T4", major=7, minor=5, total_memory=16 * GIB)
THOR = card("NVIDIA Thor", major=11, minor=0, total_memory=122 * GIB, is_integrated=1)
MI300X = card("AMD Instinct MI300X", major=9, minor=4, total_memory=192 * GIB, gcnArchName="gfx942:sramecc+:xnack-")
MI50 = card("AMD Instinct MI50", major=9, minor=0, total_memory=32 * GIB, gcnArchName="gfx906:sramecc+:xnack-")
ARC = card("Intel(R) Arc(TM) B580", total_memory=12 * GIB, uuid="cccccccc-0000-1111-2222-333333333333")


@dataclass
class FakeCuda:
    """`torch.cuda` (or `torch.xpu`) of a build with these cards. `asked` tells whether anyone touched the GPUs."""

    cards: list[SimpleNamespace] = field(default_factory=list)
    archs: list[str] = field(default_factory=list)
    raises: Exception | None = None
    asked: bool = False

    def is_available(self) -> bool:
        self.asked = True
        if self.raises:
            raise self.raises
        return bool(self.cards)

    def device_count(self) -> int:
        return len(self.cards)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return self.cards[index]

    def get_arch_list(self) -> list[str]:
        return self.archs


def fake_torch(
    build: str = "cpu", gpus: FakeCuda | None = None, capability: str = "AVX512", distributed: bool = True
) -> ModuleType:
    """A torch of the given build. It has no `distributed` at all if that is False."""
    torch = ModuleType("torch")
    torch.__dict__["__version__"] = {"cpu": "2.13.0+cpu", "cuda": "2.13.0+cu130", "rocm": "2.13.0+rocm7.0"}.get(
        build, "2.13.0"
    )
    torch.__dict__["version"] = SimpleNamespace(
        cuda="13.0" if build == "cuda" else None,
        hip="7.0.51831" if build == "rocm" else None,
        xpu="20250300" if build == "xpu" else None,
    )
    torch.__dict__["cuda"] = gpus if gpus is not None and build != "xpu" else FakeCuda()
    torch.__dict__["xpu"] = gpus if gpus is not None and build == "xpu" else FakeCuda()
    torch.__dict__["backends"] = SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: capability))
    if distributed:
        torch.__dict__["distributed"] = SimpleNamespace(is_available=lambda: True)
    return torch


def nvidia(*cards: SimpleNamespace, archs: list[str] | None = None, host: Host = GPU_HOST) -> TorchProbe:
    """A machine with NVIDIA cards and a torch for them."""
    return TorchProbe(fake_torch("cuda", FakeCuda(list(cards), CUDA_ARCHS if archs is None else archs)), host)


def amd(*cards: SimpleNamespace, host: Host = AMD_HOST) -> TorchProbe:
    """A machine with AMD cards and a torch for them."""
    return TorchProbe(fake_torch("rocm", FakeCuda(list(cards), ROCM_ARCHS)), host)
