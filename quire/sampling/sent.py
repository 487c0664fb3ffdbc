"""Numbers of the host on their way to the device, without waiting for what is queued there.

What does not come from pinned memory would be copied only once the device has nothing left to do.
"""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """`values`, of the host, on the device. On an accelerator the copy is queued behind the work before it."""
    # torch keeps pinned memory in a cache and hands a block out again only once the copies from it are done.
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
