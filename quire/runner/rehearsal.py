"""Rehearsing: steps are run without the kernels that would be compiled, and then these are compiled all at once.

What an engine needs depends on the model, the device and the settings, and is known best by the steps themselves. Only
a first start rehearses: what was compiled is kept. Called by the runner.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import torch
from torch.overrides import TorchFunctionMode

from quire.config.spec import RunSpec
from quire.ops.ahead import AHEAD

FRESH = frozenset({torch.empty, torch.empty_like, torch.Tensor.new_empty})


class _Zeros(TorchFunctionMode):
    """Fresh memory is zero, so that whoever reads what a kernel should have written finds numbers that are in range."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        return found.zero_() if func in FRESH else found


class Rehearsal:
    """The one rehearsal of a start, which may not be needed.

    Args:
        spec: names the run.
        ranks: that share the host's cores.
    """

    def __init__(self, spec: RunSpec, ranks: int) -> None:
        self._run = msgspec.json.encode(spec).decode()
        made = [AHEAD[name](_workers(ranks)) for name in spec.platform.providers if name in AHEAD]
        self._ahead = [ahead for ahead in made if not ahead.knows(self._run)]
        for ahead in self._ahead:
            ahead.begin()

    @property
    def wanted(self) -> bool:
        """Whether there is something to compile."""
        return bool(self._ahead)

    def play(self, steps: Callable[[], None]) -> None:
        """Run `steps`, whose results mean nothing, and compile what they lacked."""
        ahead, self._ahead = self._ahead, []
        with ExitStack() as stack:
            for one in ahead:
                stack.enter_context(one.noting())
            stack.enter_context(_Zeros())
            steps()
        for one in ahead:
            one.compile(self._run)


def _workers(ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // ranks)
