"""What the GPU platforms have in common: the sentences for a GPU that torch cannot open, use well, or use at all."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from quire.config.spec import PlatformName
from quire.platforms.found import Obstacle
from quire.platforms.host import Host
from quire.platforms.probe import Gpu, TorchProbe

PAGE_SIZE = 64
PROVIDERS = ("triton", "torch_native")
NO_CUDNN = {"cudnn": "cuDNN computes on NVIDIA's GPUs only"}
"""An entry of `Found.refused`, for everybody else."""


COMPILER = (
    "a C compiler and Python's headers, and they are missing (apt-get install gcc python3-dev, or your system's names "
    "of them)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """A maker of GPUs.

    Attributes:
        vendor: as `Host.gpu_vendors` spells it.
        build: the torch build that drives its GPUs.
        get_build: the command that installs such a torch.
        get_driver: what to do when such a torch still cannot open the GPU.
    """

    vendor: str
    build: PlatformName
    get_build: str
    get_driver: str


def unopened(probe: TorchProbe, maker: Maker) -> Obstacle | None:
    """Why a GPU of `maker` whose driver is loaded is not open to torch, or None if none is shut out."""
    if maker.vendor not in probe.host.gpu_vendors or probe.host.gpus_hidden:
        return None
    here = f"A GPU of {maker.vendor} is here, but this torch ({probe.version})"
    if probe.build != maker.build:
        return Obstacle(f"{here} was built for {probe.build} and cannot use it.", maker.get_build)
    if probe.gpus:
        return None
    said = f": {probe.failure.rstrip('.')}" if probe.failure else ""
    return Obstacle(f"{here} cannot open it{said}.", maker.get_driver)


def no_machine_code(gpu: Gpu, arch: str, built: Iterable[str], probe: TorchProbe) -> Obstacle:
    """This torch was not built for `arch`: none of its own kernels would start."""
    return Obstacle(
        f"{gpu.name} is {arch}, and this torch ({probe.version}) has machine code for {', '.join(built)} only.",
        f"install a torch that was built for {arch}",
    )


def discouraged(arch: str, proven: bool, providers: Iterable[str] = PROVIDERS) -> dict[str, str]:
    """On an architecture that nobody has tried, fast kernels run only when asked for by name."""
    return {} if proven else dict.fromkeys(providers, f"nobody has tried it on {arch} yet")


def cautions(gpu: Gpu, arch: str, proven: bool) -> Iterator[str]:
    """Sentences about a GPU that works, but not as its owner may expect."""
    if not proven:
        yield (
            f"{gpu.name} ({arch}) is a GPU that this version of quire does not know: it runs the reference kernels, "
            "which are correct but slow; --kernels torch_native is the next thing to try"
        )
    if gpu.unified:
        yield f"{gpu.name} shares its memory with the CPU: --gpu-memory-utilization is a share of all of it"


def triton_refusal(host: Host, of_arch: str | None) -> dict[str, str]:
    """The entry of `Found.refused` for Triton: what its compiler says of the architecture, else what the host lacks."""
    reason = of_arch or (None if host.has_triton else "the package triton is not installed (pip install triton)")
    return {"triton": reason} if reason else {}


def compiler_refusal(host: Host) -> dict[str, str]:
    """The like where Triton cannot do without a C compiler."""
    return {} if host.has_compiler else {"triton": f"Triton compiles its launcher with {COMPILER}"}
