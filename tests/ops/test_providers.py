"""Every provider of every op, on the op's own samples, against the reference. New ones join by themselves."""

import copy
import dataclasses
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import quire.ops
from quire.ops.registry import OPS, REFERENCE, Op, load_providers
from quire.platforms import native
from quire.platforms.providers import installed
from tests.ops.triton import INTERPRETER

pytestmark = pytest.mark.torch

for _module in pkgutil.iter_modules(quire.ops.__path__):
    importlib.import_module(f"quire.ops.{_module.name}")
ELSEWHERE = {"cudnn", *([] if native.is_built() else ["cpu"]), *([] if INTERPRETER else ["triton"])}
"""Folders whose kernels cannot run here."""
LOADED = [name for name in installed() if name not in ELSEWHERE]
load_providers(LOADED)
KERNELS = Path(quire.__file__).parent / "kernels"
MANY, BIAS = 128, 5e-3
"""By so much 16-bit results may all be too large or too small, where there are so many that rounding averages out."""
CASES = [(op, name) for op in OPS.values() for name in op.providers if name != REFERENCE]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor within nested containers and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.compare:
                yield from tensors(getattr(value, field.name))


def run(op: Op, provider: str, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """What the provider returns, and what became of the inputs."""
    kwargs = copy.deepcopy(kwargs)
    return [*tensors(op.providers[provider].function(**kwargs)), *tensors(kwargs)]


def bias(got: torch.Tensor, want: torch.Tensor) -> float:
    """By which part of them results are too large or too small, all alike; 0 for few."""
    got, want = (x[want.isfinite() & got.isfinite()].double() for x in (got, want))
    power = want.square().sum().item()
    return abs((got * want).sum().item() / power - 1) if len(want) >= MANY and power else 0.0


@pytest.mark.parametrize("folder", installed())
def test_every_kernel_of_a_folder_is_registered_under_its_name(folder: str) -> None:
    registered = False
    for file in (KERNELS / folder).rglob("*.py"):
        names = set(re.findall(r'^@provide\("(\w+)"', file.read_text(encoding="utf-8"), re.MULTILINE))
        assert names <= {folder}, file
        parts = file.relative_to(KERNELS.parent).with_suffix("").parts
        module = ".".join(["quire", *parts]).removesuffix(".__init__")
        assert not names or folder in ELSEWHERE or module in sys.modules, f"{folder}/__init__.py must import {module}"
        registered |= bool(names)
    assert registered


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_an_op_has_samples_that_its_reference_runs(op: Op) -> None:
    samples = list(op.samples())
    assert samples
    for _spec, kwargs in samples:
        assert run(op, REFERENCE, kwargs)


@pytest.mark.parametrize(("op", "provider"), CASES, ids=[f"{op.name}-{name}" for op, name in CASES])
def test_a_provider_equals_the_reference(op: Op, provider: str) -> None:
    compared = 0
    for spec, kwargs in op.samples():
        if op.providers[provider].refuses(spec):
            continue
        for want, got in zip(run(op, REFERENCE, kwargs), run(op, provider, kwargs), strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape, spec
            if want.is_floating_point():
                name = str(want.dtype).removeprefix("torch.")
                rtol, atol = op.tolerance.get(f"{getattr(spec, 'dtype', '')} {name}", op.tolerance[name])
                torch.testing.assert_close(
                    got.float(), want.float(), rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, s=spec: f"{s}\n{m}"
                )
                assert want.itemsize != 2 or bias(got, want) < BIAS, f"{spec}: by {bias(got, want):.4f}"
            else:
                assert torch.equal(got, want), spec
        compared += 1
    assert compared, "the provider refuses every sample"


@pytest.mark.parametrize("name", ["attend", "paged_attention"])
def test_attention_reads_nothing_stale(name: str) -> None:
    # The samples hold NaN wherever nothing may be read: unused pages, tails, tokens that left every window. Providers
    # equal the reference, NaN included, so none of them reads what this does not.
    poisoned = 0
    for spec, kwargs in OPS[name].samples():
        kwargs = copy.deepcopy(kwargs)
        poisoned += int(kwargs["pages"].k.isnan().sum())
        assert torch.isfinite(OPS[name].reference(**kwargs)).all(), spec
    assert poisoned
