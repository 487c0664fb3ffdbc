"""NVIDIA GPUs, by a torch that was built for CUDA.

Knows compute capabilities: which are proven, what they compute well, which of them Triton and torch's own machine code
serve. Asks torch only: neither NVML nor nvidia-smi is needed, which Jetson boards and thin containers lack.
"""

import re
from collections.abc import Iterator

from quire.platforms.found import Found, Obstacle
from quire.platforms.gpus import (
    COMPILER,
    PAGE_SIZE,
    PROVIDERS,
    Maker,
    cautions,
    discouraged,
    no_machine_code,
    triton_refusal,
    unopened,
)
from quire.platforms.host import Host
from quire.platforms.probe import Gpu, TorchProbe

NVIDIA = Maker(
    vendor="NVIDIA",
    build="cuda",
    get_build="pip install --force-reinstall torch",
    get_driver="update the driver (nvidia-smi shows its version), or install a torch for an older CUDA",
)
Capability = tuple[int, int]
# fmt: off
PROVEN: frozenset[Capability] = frozenset({
    (5, 0), (5, 2), (6, 0), (6, 1), (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9),
    (9, 0), (10, 0), (10, 3), (12, 0), (12, 1),
})
# fmt: on
TRITON_FROM: Capability = (8, 0)
CUDNN_ON = (9, 10)
"""Major versions on which cuDNN packs queries of many sequences over pages."""
BFLOAT16_FROM: Capability = (8, 0)
# Before 7.0 only the data-centre Pascal computes float16 faster than float32.
FLOAT16_FROM: Capability = (7, 0)
FLOAT16_BEFORE = frozenset({(6, 0)})


def devices(probe: TorchProbe) -> Iterator[Found]:
    """Every NVIDIA GPU that torch opens."""
    if probe.build == "cuda":
        yield from (_describe(gpu, probe) for gpu in probe.gpus)


def obstacle(probe: TorchProbe) -> Obstacle | None:
    """Why an NVIDIA GPU of this machine is not open to torch, if there is one."""
    return unopened(probe, NVIDIA)


def dtypes(capability: Capability) -> tuple[str, ...]:
    """Types that a compute capability computes well, preferred first."""
    if capability >= BFLOAT16_FROM:
        return ("bfloat16", "float16", "float32")
    if capability >= FLOAT16_FROM or capability in FLOAT16_BEFORE:
        return ("float16", "float32")
    return ("float32",)


def serves(built: str, capability: Capability) -> bool:
    """Whether code built as `built` ("sm_80", "sm_90a", "compute_120") runs on a GPU of this capability.

    Machine code runs on its own major version from its minor version on (with the suffix "a" on exactly its own); PTX
    (compute_*) is compiled by the driver for anything newer. Source: CUDA C++ Programming Guide, "Application
    Compatibility".
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", built)
    if match is None:
        return False
    kind, major, minor, suffix = match.groups()
    target = (int(major), int(minor))
    if suffix == "a":
        return target == capability
    return target <= capability and (kind == "compute" or target[0] == capability[0])


def _describe(gpu: Gpu, probe: TorchProbe) -> Found:
    arch = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
    proven = gpu.capability in PROVEN
    built = probe.built_archs
    runs = not built or any(serves(code, gpu.capability) for code in built)
    providers = ("cudnn", *PROVIDERS) if gpu.capability[0] in CUDNN_ON else PROVIDERS
    return Found(
        platform="cuda",
        device=f"cuda:{gpu.index}",
        title=gpu.name,
        arch=arch,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        dtypes=dtypes(gpu.capability),
        page_size=PAGE_SIZE,
        providers=providers,
        refused=_cudnn_refusal(probe.host, gpu.capability) | triton_refusal(probe.host, _too_old(gpu.capability)),
        discouraged=discouraged(arch, proven, providers),
        warnings=(*cautions(gpu, arch, proven), *_launches(probe.host, gpu.capability)),
        unusable=None if runs else no_machine_code(gpu, arch, built, probe),
    )


def _launches(host: Host, capability: Capability) -> Iterator[str]:
    """A sentence where Triton's kernels run, but are launched in another way than Triton's own."""
    if host.has_triton and capability >= TRITON_FROM and not host.has_compiler:
        yield (
            f"Triton would compile its launcher with {COMPILER}: quire launches the kernels itself, which makes steps "
            "that are not recorded start some microseconds a kernel later"
        )


def _too_old(capability: Capability) -> str | None:
    if capability >= TRITON_FROM:
        return None
    least, own = (".".join(map(str, pair)) for pair in (TRITON_FROM, capability))
    return f"Triton needs compute capability {least}, and this GPU has {own}"


def _cudnn_refusal(host: Host, capability: Capability) -> dict[str, str]:
    """The entry of `Found.refused` for cuDNN. What its library lacks is found out when it is first loaded."""
    if capability[0] not in CUDNN_ON:
        own = ".".join(map(str, capability))
        return {"cudnn": f"packs queries on compute capability 9 and 10 only, and this GPU has {own}"}
    return {} if host.has_cudnn else {"cudnn": "nvidia-cudnn-frontend is not installed (pip install 'quire[cuda]')"}
