"""What launches are told of a device that this machine has not."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.torch
triton = pytest.importorskip("triton")


def test_shared_memory_is_asked_for_on_every_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.kernels.triton import launch

    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": 65536 + index})
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(utils=utils))
    found = launch.device_of.__wrapped__(torch.device("xpu", 1))
    assert (found.shared_bytes, found.nvidia, found.options) == (65537, False, {"PDL": False})


@pytest.mark.parametrize(("key", "shared", "width"), [(128, 227, 64), (256, 227, 32), (128, 99, 32)])
def test_wide_blocks_of_states_are_for_hopper(
    monkeypatch: pytest.MonkeyPatch, key: int, shared: int, width: int
) -> None:
    from quire.kernels.triton.launch import Device
    from quire.kernels.triton.recurrent import delta_chunks
    from quire.ops.delta import DeltaSpec

    monkeypatch.setattr(delta_chunks, "device_of", lambda device: Device(8, True, True, True, shared << 10))
    x = torch.empty(1, dtype=torch.bfloat16)
    assert delta_chunks._width(DeltaSpec(2, 4, key, 128, "bfloat16"), 16, x) == width
