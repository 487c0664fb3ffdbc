"""Intel GPUs, by a torch that was built for XPU. torch tells no architecture that kernels would differ by."""

from collections.abc import Iterator

from quire.platforms.found import Found, Obstacle
from quire.platforms.gpus import (
    NO_CUDNN,
    PAGE_SIZE,
    PROVIDERS,
    Maker,
    cautions,
    compiler_refusal,
    triton_refusal,
    unopened,
)
from quire.platforms.probe import Gpu, TorchProbe

ARCH = "xpu"
INTEL = Maker(
    vendor="Intel",
    build="xpu",
    get_build="pip install --force-reinstall torch --index-url XPU_INDEX "
    "(XPU_INDEX: the address that PyTorch's install page gives for Intel GPUs)",
    get_driver="sudo usermod -aG render $USER, then log in again; Level Zero must be installed",
)


def devices(probe: TorchProbe) -> Iterator[Found]:
    """Every Intel GPU that torch opens."""
    if probe.build == "xpu":
        yield from (_describe(gpu, probe) for gpu in probe.gpus)


def obstacle(probe: TorchProbe) -> Obstacle | None:
    """Why an Intel GPU of this machine is not open to torch, if there is one."""
    return unopened(probe, INTEL)


def _describe(gpu: Gpu, probe: TorchProbe) -> Found:
    return Found(
        platform="xpu",
        device=f"xpu:{gpu.index}",
        title=gpu.name,
        arch=ARCH,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        dtypes=("bfloat16", "float16", "float32"),
        page_size=PAGE_SIZE,
        providers=PROVIDERS,
        refused=NO_CUDNN | compiler_refusal(probe.host) | triton_refusal(probe.host, None),
        warnings=tuple(cautions(gpu, ARCH, proven=True)),
    )
