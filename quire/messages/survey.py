"""What a process with torch reports to `quire doctor` and `quire collect-env`, which themselves never import it.

torch may be missing, raise or end its process while it is imported; a child finds out and only its words come back.
"""

import msgspec

from quire.config.spec import PlatformFacts


class Trouble(msgspec.Struct, frozen=True):
    """Something in the way, and the command (or the step) that fixes it."""

    what: str
    fix: str


class TorchReport(msgspec.Struct, frozen=True, kw_only=True):
    """torch as it was found.

    Attributes:
        version: with its local part ("2.13.0+cpu").
        build: what it was built for: "cpu", "cuda", "rocm" or "xpu".
        distributed: it can talk between processes.
        threads: CPU threads that it computes with.
        cpu_capability: vector instructions that it uses.
        archs: GPU architectures that it has machine code for.
        gpus: one line for people per GPU that it can open.
    """

    version: str
    build: str
    distributed: bool
    threads: int
    cpu_capability: str
    archs: list[str]
    gpus: list[str]


class OpReport(msgspec.Struct, frozen=True):
    """Who computes an op.

    Attributes:
        op: its name.
        providers: those that serve its sample cases, with the number of cases.
        refused: those that come earlier in the order and do not, with the reason.
    """

    op: str
    providers: dict[str, int]
    refused: dict[str, str]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the child found.

    Attributes:
        torch: None if it cannot be imported.
        platform: None if the device or the kernels that were asked for cannot be had.
        ops: one entry per op, by name.
        troubles: what is in the way of the device that was asked for.
        native: the instructions that the compiled CPU kernels use; empty where they do not run.
    """

    torch: TorchReport | None = None
    platform: PlatformFacts | None = None
    ops: list[OpReport] = []
    troubles: list[Trouble] = []
    native: str = ""
