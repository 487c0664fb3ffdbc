"""`detect` on machines that we do not have: it finds a device, or says what to do, and never fails on "auto"."""

import sys
from dataclasses import replace

import pytest

from quire.base.errors import ConfigError, PlatformError
from quire.config.spec import PlatformFacts
from quire.platforms import detect, in_the_way
from quire.platforms.probe import TorchProbe
from quire.platforms.providers import NOT_INSTALLED, installed
from tests.platforms.fakes import (
    AMD_HOST,
    ARC,
    CPU_HOST,
    GIB,
    GPU_HOST,
    H200,
    H200_2,
    MI50,
    MI300X,
    T4,
    THOR,
    FakeCuda,
    amd,
    card,
    fake_torch,
    nvidia,
)

pytestmark = pytest.mark.plain


def auto(probe: TorchProbe) -> PlatformFacts:
    return detect("auto", "auto", probe)


def test_h200() -> None:
    facts = auto(nvidia(H200, H200_2))
    assert (facts.name, facts.device, facts.arch, facts.page_size) == ("cuda", "cuda:0", "sm_90", 64)
    assert facts.dtypes[0] == "bfloat16"
    assert facts.total_bytes == 141 * GIB
    assert facts.providers == [name for name in ("cudnn", "triton", "torch_native") if name in installed()]
    assert facts.warnings == []


def test_mi300x_is_rocm_although_torch_says_cuda() -> None:
    facts = auto(amd(MI300X))
    assert (facts.name, facts.device, facts.arch) == ("rocm", "cuda:0", "gfx942")
    assert facts.dtypes[0] == "bfloat16"
    assert facts.warnings == []


def test_mi50_runs_without_triton() -> None:
    facts = auto(amd(MI50))
    assert (facts.name, facts.arch) == ("rocm", "gfx906")
    assert "gfx906" in facts.refused["triton"]
    assert "triton" not in facts.providers
    assert "bfloat16" not in facts.dtypes


def test_thor_is_new_and_has_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it would raise
    facts = auto(nvidia(THOR, archs=["sm_80", "sm_110"]))
    assert (facts.name, facts.device, facts.arch) == ("cuda", "cuda:0", "sm_110")
    assert facts.providers == []
    assert "sm_110" in facts.refused["torch_native"]
    unknown, unified = facts.warnings
    assert "does not know" in unknown
    assert "reference kernels" in unknown
    assert "shares its memory" in unified


def test_an_unknown_gpu_runs_faster_kernels_when_asked() -> None:
    assert detect("auto", "torch_native", nvidia(THOR, archs=["sm_110"])).providers == ["torch_native"]


def test_unknown_amd_gpu_gets_the_reference_and_a_warning() -> None:
    probe = TorchProbe(fake_torch("rocm", FakeCuda([card("AMD New", gcnArchName="gfx1999")], ["gfx1999"])), AMD_HOST)
    facts = auto(probe)
    assert facts.providers == []
    assert "gfx1999" in facts.warnings[0]


def test_intel_gpu() -> None:
    host = replace(GPU_HOST, gpu_vendors=("Intel",))
    facts = auto(TorchProbe(fake_torch("xpu", FakeCuda([ARC])), host))
    assert (facts.name, facts.device) == ("xpu", "xpu:0")


@pytest.mark.parametrize(
    ("vendor", "remedy"),
    [
        ("NVIDIA", "pip install --force-reinstall torch"),
        ("AMD", "ROCM_INDEX"),
        ("Intel", "XPU_INDEX"),
    ],
)
def test_gpu_with_a_cpu_only_torch(vendor: str, remedy: str) -> None:
    probe = TorchProbe(fake_torch("cpu"), replace(CPU_HOST, gpu_vendors=(vendor,)))
    facts = auto(probe)
    assert facts.device == "cpu"
    (sentence,) = facts.warnings
    assert vendor in sentence
    assert "2.13.0+cpu" in sentence
    assert remedy in sentence


def test_gpus_hidden_on_purpose_are_not_mentioned() -> None:
    probe = TorchProbe(fake_torch("cpu"), replace(CPU_HOST, gpu_vendors=("NVIDIA",), gpus_hidden=True))
    assert auto(probe).warnings == []


def test_a_driver_that_fails_leaves_the_cpu() -> None:
    broken = FakeCuda([H200], ["sm_90"], raises=RuntimeError("driver too old (found version 11040)"))
    facts = auto(TorchProbe(fake_torch("cuda", broken), GPU_HOST))
    assert facts.device == "cpu"
    assert "driver too old" in facts.warnings[0]


def test_a_gpu_that_this_torch_has_no_code_for() -> None:
    maxwell = card("GTX 970", major=5, minor=2)
    facts = auto(nvidia(maxwell))
    assert facts.device == "cpu"
    assert "sm_52" in facts.warnings[0]
    assert "torch that was built for sm_52" in facts.warnings[0]
    insisted = detect("cuda", "auto", nvidia(maxwell))
    assert insisted.device == "cuda:0"
    assert "sm_52" in insisted.warnings[0]


def test_the_usable_gpu_is_taken_before_the_unusable() -> None:
    assert auto(nvidia(card("GTX 970", major=5, minor=2), H200)).device == "cuda:1"


def test_old_gpu_without_triton() -> None:
    facts = auto(nvidia(T4))
    assert "7.5" in facts.refused["triton"]
    assert facts.dtypes == ["float16", "float32"]


def test_without_triton_torchs_own_kernels_run() -> None:
    facts = auto(nvidia(H200, host=replace(GPU_HOST, has_triton=False)))
    assert "pip install triton" in facts.refused["triton"]
    assert "torch_native kernels run instead" in facts.warnings[-1]


def test_without_a_compiler_triton_runs_and_start_up_says_so() -> None:
    facts = auto(nvidia(H200, host=replace(GPU_HOST, has_compiler=False)))
    assert facts.providers == auto(nvidia(H200)).providers
    (warning,) = facts.warnings
    assert "python3-dev" in warning and "quire launches the kernels itself" in warning


def test_amd_needs_a_compiler_for_triton() -> None:
    facts = auto(amd(MI300X, host=replace(AMD_HOST, has_compiler=False)))
    assert "python3-dev" in facts.refused["triton"]


def test_torch_without_distributed() -> None:
    probe = TorchProbe(fake_torch("cuda", FakeCuda([H200], ["sm_90"]), distributed=False), GPU_HOST)
    assert not probe.has_distributed
    assert auto(probe).device == "cuda:0"


@pytest.mark.parametrize(
    ("capability", "arch", "dtypes"),
    [
        ("AVX512", "avx512", ["float32", "bfloat16"]),
        ("AVX2", "avx2", ["float32"]),
        ("NO AVX", "no_avx", ["float32"]),
    ],
)
def test_cpu(capability: str, arch: str, dtypes: list[str]) -> None:
    facts = auto(TorchProbe(fake_torch("cpu", capability=capability), CPU_HOST))
    assert (facts.name, facts.device, facts.arch) == ("cpu", "cpu", arch)
    assert facts.dtypes == dtypes
    assert facts.page_size == 16
    assert facts.total_bytes == 16 * GIB
    assert "triton" in facts.refused
    assert facts.warnings == []


def test_compiled_kernels_come_first_where_there_are_any() -> None:
    there = auto(TorchProbe(fake_torch("cpu"), CPU_HOST))
    assert there.providers == ["cpu", "torch_native"]
    missing = auto(TorchProbe(fake_torch("cpu"), replace(CPU_HOST, has_native=False)))
    assert missing.providers == ["torch_native"]
    assert "g++" in missing.refused["cpu"] and "torch_native kernels run instead" in missing.warnings[0]
    old = auto(TorchProbe(fake_torch("cpu"), replace(CPU_HOST, cpu_flags=frozenset(), has_native=False)))
    assert old.providers == ["torch_native"] and "AVX2" in old.refused["cpu"] and old.warnings == []


def test_the_cpu_asked_for_by_name_wakes_no_gpu() -> None:
    gpus = FakeCuda([H200], ["sm_90"])
    assert detect("cpu", "auto", TorchProbe(fake_torch("cuda", gpus), GPU_HOST)).device == "cpu"
    assert not gpus.asked


@pytest.mark.parametrize(
    ("asked", "device"),
    [
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("CUDA:1", "cuda:1"),
        ("1", "cuda:1"),
        ("GPU-aaaabbbb-0000-1111-2222-333333333333", "cuda:1"),
        ("aaaabbbb", "cuda:1"),
    ],
)
def test_by_index_or_uuid(asked: str, device: str) -> None:
    assert detect(asked, "auto", nvidia(H200, H200_2)).device == device


def test_a_uuid_that_fits_two() -> None:
    twin = card("NVIDIA H200", uuid="aaaaaaaa-9999-1111-2222-333333333333")
    with pytest.raises(PlatformError, match="write more of the UUID"):
        detect("GPU-aaaaaaaa", "auto", nvidia(H200, twin))


@pytest.mark.parametrize("asked", ["cuda:7", "GPU-ffffffff", "rocm", "xpu:0"])
def test_a_missing_gpu_names_those_that_are_there(asked: str) -> None:
    with pytest.raises(PlatformError, match=r"torch sees cuda:0 \(NVIDIA H200.*--device cpu"):
        detect(asked, "auto", nvidia(H200))


def test_a_gpu_on_a_machine_without_any() -> None:
    with pytest.raises(PlatformError, match=r"finds no GPU.*--device cpu"):
        detect("cuda", "auto", TorchProbe(fake_torch("cpu"), CPU_HOST))


def test_a_gpu_that_a_cpu_only_torch_cannot_open_names_the_command() -> None:
    probe = TorchProbe(fake_torch("cpu"), replace(CPU_HOST, gpu_vendors=("NVIDIA",)))
    with pytest.raises(PlatformError, match="pip install --force-reinstall torch"):
        detect("cuda", "auto", probe)


def test_rocm_by_either_name() -> None:
    assert detect("rocm:0", "auto", amd(MI300X)).device == "cuda:0"
    assert detect("cuda", "auto", amd(MI300X)).name == "rocm"


@pytest.mark.parametrize("asked", ["", "gpu", "cuda:", "cuda:-1", "tpu", "cuda:0,1"])
def test_a_word_that_names_no_device(asked: str) -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        detect(asked, "auto", nvidia(H200))


@pytest.mark.parametrize(
    "probe", [nvidia(H200), nvidia(THOR), amd(MI50), TorchProbe(fake_torch("cpu", capability="AVX2"), CPU_HOST)]
)
def test_reference_kernels_run_everywhere(probe: TorchProbe) -> None:
    assert detect("auto", "reference", probe).providers == []


def test_obstacles_are_told_even_when_the_cpu_was_asked_for() -> None:
    probe = TorchProbe(fake_torch("cpu"), replace(CPU_HOST, gpu_vendors=("NVIDIA", "AMD")))
    assert [("NVIDIA" in one.what, "AMD" in one.what) for one in in_the_way(probe)] == [(True, False), (False, True)]


def test_refusals_name_kernels_that_are_not_part_of_this_version() -> None:
    facts = auto(nvidia(H200))
    missing = [name for name in ("triton", "torch_native") if name not in installed()]
    assert facts.refused == dict.fromkeys(missing, NOT_INSTALLED)
