"""Picking kernel folders: what is installed, what the device refuses, what the user insists on."""

import pytest

from quire.base.errors import ConfigError, PlatformError
from quire.platforms import cpu, cuda, rocm
from quire.platforms.providers import installed, select
from tests.platforms.fakes import CPU_HOST, H200, MI50, THOR, TorchProbe, amd, fake_torch, nvidia

pytestmark = pytest.mark.plain

FOLDERS = ["cudnn", "torch_native", "triton"]
GPU = next(cuda.devices(nvidia(H200)))
OLD = next(rocm.devices(amd(MI50)))
NEW = next(cuda.devices(nvidia(THOR)))
CPU = next(cpu.devices(TorchProbe(fake_torch(), CPU_HOST)))


def test_folders_are_those_of_the_package() -> None:
    assert "reference" not in installed()
    assert "torch_native" in installed()


def test_auto_takes_the_order_of_the_platform() -> None:
    assert select("auto", GPU, FOLDERS).providers == ["cudnn", "triton", "torch_native"]
    assert select("auto", CPU, FOLDERS).providers == ["torch_native"]


def test_auto_says_which_better_kernels_were_lost() -> None:
    chosen = select("auto", OLD, FOLDERS)
    assert chosen.providers == ["torch_native"]
    assert chosen.refused["triton"] in chosen.warnings[0]
    assert "torch_native kernels run instead" in chosen.warnings[0]


def test_kernels_that_the_cpu_was_never_meant_to_run_are_no_loss() -> None:
    assert select("auto", CPU, FOLDERS).warnings == []


def test_unknown_gpu_gets_nothing_but_the_reference() -> None:
    chosen = select("auto", NEW, FOLDERS)
    assert chosen.providers == []
    assert set(chosen.refused) == set(FOLDERS)


def test_a_name_that_is_not_installed_lists_what_is() -> None:
    with pytest.raises(ConfigError, match="reference, torch_native"):
        select("triton", GPU, ["torch_native"])


def test_a_name_that_the_device_refuses_lists_what_works() -> None:
    with pytest.raises(PlatformError, match=r"gfx906.*reference, torch_native"):
        select("triton", OLD, FOLDERS)


def test_one_name_means_that_folder_only() -> None:
    assert select("torch_native", GPU, FOLDERS).providers == ["torch_native"]
    assert select("reference", GPU, FOLDERS).providers == []
