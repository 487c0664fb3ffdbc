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
