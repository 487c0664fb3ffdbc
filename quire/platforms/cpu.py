"""The CPU: always there, so it is what every search for a device ends with."""

from collections.abc import Iterator

from quire.platforms.found import Found, Obstacle
from quire.platforms.gpus import NO_CUDNN
from quire.platforms.host import Host
from quire.platforms.probe import TorchProbe

PAGE_SIZE = 16
# Instructions that make bfloat16 as quick as float32; elsewhere torch widens every value first.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


VECTORS = frozenset({"avx2", "asimd"})
"""Instructions that the compiled kernels need at least: one of them."""
OLD = "they are written for x86-64 processors with AVX2 and for AArch64"
NOT_BUILT = (
    "they were not compiled when quire was installed; install g++, then run pip install --force-reinstall --no-deps "
    "on what quire was installed from"
)


def devices(probe: TorchProbe) -> Iterator[Found]:
    """The one CPU."""
    # ATEN_CPU_CAPABILITY and old processors keep torch below the vectors that bfloat16 instructions belong to.
    wide = probe.cpu_capability not in ("AVX2", "NO AVX", "DEFAULT") or "bf16" in probe.host.cpu_flags
    has_bfloat16 = wide and bool(BFLOAT16_FLAGS & probe.host.cpu_flags)
    yield Found(
        platform="cpu",
        device="cpu",
        title=probe.host.cpu,
        arch=probe.cpu_capability.lower().replace(" ", "_"),
        total_bytes=probe.host.memory_bytes,
        dtypes=("float32", "bfloat16") if has_bfloat16 else ("float32",),
        page_size=PAGE_SIZE,
        providers=("cpu", "torch_native") if VECTORS & probe.host.cpu_flags else ("torch_native",),
        refused={"triton": "Triton compiles for GPUs, and this is a CPU", **NO_CUDNN, **_refused(probe.host)},
    )


def obstacle(probe: TorchProbe) -> Obstacle | None:
    """Nothing can be in the way of a CPU."""
    return None


def _refused(host: Host) -> dict[str, str]:
    """Why quire's own kernels cannot run, if they cannot."""
    if not VECTORS & host.cpu_flags:
        return {"cpu": OLD}
    return {} if host.has_native else {"cpu": NOT_BUILT}
