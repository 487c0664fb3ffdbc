"""Engines of a test run as on another device: with other fields of `RunSpec`, or with sharing from few tokens on."""

from typing import Any

import msgspec
import pytest

from quire.config.resolve import resolve
from quire.config.spec import RunSpec
from quire.engine import begin
from quire.messages.state import Layout
from quire.scheduler.build import make
from quire.scheduler.scheduler import Scheduler


def resolved(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Engines that begin from now on have these fields of RunSpec."""
    monkeypatch.setattr(begin, "resolve", lambda *given: msgspec.structs.replace(resolve(*given), **fields))


def shared_early(monkeypatch: pytest.MonkeyPatch, kind: type[Scheduler] = Scheduler) -> None:
    """Kernels are told of two sequences that begin with the same four tokens; `kind` plans."""

    def small(spec: RunSpec, layout: Layout, recordable: bool) -> Scheduler:
        limits = msgspec.structs.replace(make(spec, layout, recordable).limits, shared_rows=2, shared_tokens=4)
        return kind(limits, layout, seed=spec.seed)

    monkeypatch.setattr(begin, "make", small)
