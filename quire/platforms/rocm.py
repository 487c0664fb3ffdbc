"""AMD GPUs, by a torch that was built for ROCm. torch calls them "cuda"; `torch.version.hip` tells the difference.

Knows gfx architectures: which are proven, what they compute well, and which of them Triton has no compiler for.
"""

from collections.abc import Iterator

from quire.platforms.found import Found, Obstacle
from quire.platforms.gpus import (
    NO_CUDNN,
    PAGE_SIZE,
    PROVIDERS,
    Maker,
    cautions,
    compiler_refusal,
    discouraged,
    no_machine_code,
    triton_refusal,
    unopened,
)
from quire.platforms.probe import Gpu, TorchProbe

AMD = Maker(
    vendor="AMD",
    build="rocm",
    get_build="pip install --force-reinstall torch --index-url ROCM_INDEX "
    "(ROCM_INDEX: the address that PyTorch's install page gives for ROCm)",
    get_driver="sudo usermod -aG render,video $USER, then log in again (/dev/kfd must be readable and writable)",
)
ALL = ("bfloat16", "float16", "float32")
HALF = ("float16", "float32")
# Architecture to the types that it computes well, preferred first.
PROVEN: dict[str, tuple[str, ...]] = {
    "gfx900": HALF,
    "gfx906": HALF,
    "gfx908": ("float16", "bfloat16", "float32"),
    "gfx90a": ALL,
    "gfx942": ALL,
    "gfx950": ALL,
    "gfx1030": HALF,
    "gfx1100": ALL,
    "gfx1101": ALL,
    "gfx1102": ALL,
    "gfx1151": ALL,
    "gfx1200": ALL,
    "gfx1201": ALL,
}
TRITON_REFUSES = {
    "gfx900": "Triton has no compiler target for gfx900 (Vega 10)",
    "gfx906": "Triton has no compiler target for gfx906 (MI50, MI60, Radeon VII)",
}


def devices(probe: TorchProbe) -> Iterator[Found]:
    """Every AMD GPU that torch opens."""
    if probe.build == "rocm":
        yield from (_describe(gpu, probe) for gpu in probe.gpus)


def obstacle(probe: TorchProbe) -> Obstacle | None:
    """Why an AMD GPU of this machine is not open to torch, if there is one."""
    return unopened(probe, AMD)


def _describe(gpu: Gpu, probe: TorchProbe) -> Found:
    proven = gpu.arch in PROVEN
    # Built for all features of an architecture or for some: gfx90a:xnack+
    built = [arch.partition(":")[0] for arch in probe.built_archs]
    runs = not built or gpu.arch in built
    return Found(
        platform="rocm",
        device=f"cuda:{gpu.index}",
        title=gpu.name,
        arch=gpu.arch,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        dtypes=PROVEN.get(gpu.arch, ALL),
        page_size=PAGE_SIZE,
        providers=PROVIDERS,
        refused=NO_CUDNN | compiler_refusal(probe.host) | triton_refusal(probe.host, TRITON_REFUSES.get(gpu.arch)),
        discouraged=discouraged(gpu.arch, proven),
        warnings=tuple(cautions(gpu, gpu.arch, proven)),
        unusable=None if runs else no_machine_code(gpu, gpu.arch, built, probe),
    )
