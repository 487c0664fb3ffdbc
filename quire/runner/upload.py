"""Small numbers on their way to the device: packed into one copy, from pinned memory, without waiting for it."""

from array import array

import torch
from torch import Tensor

from quire.sampling.sent import sent


def upload(values: list[int], device: torch.device) -> Tensor:
    """`values` as (n,) int64 on the device. On an accelerator the copy is queued behind the work before it."""
    return _send(array("q", values), torch.int64, device)


def upload_short(values: "array[int]", device: torch.device) -> Tensor:
    """`values`, of type code i, as (n,) int32 on the device, like `upload`."""
    return _send(values, torch.int32, device)


def _send(values: "array[int]", dtype: torch.dtype, device: torch.device) -> Tensor:
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    # An array is read several times faster than a list.
    return sent(torch.frombuffer(values, dtype=dtype), device)
