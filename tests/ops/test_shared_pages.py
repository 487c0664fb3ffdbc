"""Pages with which sequences begin alike are read once for all of them: only the first one's table is looked at."""

import copy
import dataclasses

import pytest
import torch

from quire.ops.attention import attend
from quire.ops.registry import load_providers
from quire.ops.samples import dtypes
from tests.ops.triton import INTERPRETER, needs_interpreter

PROVIDERS = ["torch_native", *(["triton"] if INTERPRETER else [])]

pytestmark = pytest.mark.torch


def first_of_each(shared):
    """Positions of those sequences that come first among their like."""
    number = shared.number.tolist()
    return {number.index(n) for n in number if n >= 0}


def without_others(kwargs):
    """The same arguments; all but the first of those who begin alike have a page full of NaN there."""
    kwargs = copy.deepcopy(kwargs)
    step, pages = kwargs["step"], kwargs["pages"]
    (group,) = step.groups
    broken = len(pages.k)
    k, v = (torch.cat([pool, torch.full_like(pool[:1], torch.nan)]) for pool in (pages.k, pages.v))
    table = group.page_table.clone()
    for i, tokens in enumerate(group.shared.tokens.tolist()):
        if i not in first_of_each(group.shared):
            table[i, : tokens // group.page_size] = broken
    group = dataclasses.replace(group, page_table=table)
    step = dataclasses.replace(step, groups=(group,), derived={})
    return {**kwargs, "step": step, "pages": dataclasses.replace(pages, k=k, v=v)}


@pytest.mark.parametrize("name", PROVIDERS)
def test_only_the_first_table_is_looked_at(name):
    load_providers([name])
    compared = 0
    for spec, kwargs in attend.samples():
        provider, (group,) = attend.providers[name], kwargs["step"].groups
        shares = group.shared is not None and spec.window is None and not spec.special
        if not shares or kwargs["step"].max_query > 1 or provider.refuses(spec):
            continue
        got = provider.function(**without_others(kwargs))
        torch.testing.assert_close(got, attend(**copy.deepcopy(kwargs)), rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared >= 4


@needs_interpreter
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ({"lines": 16, "tile": 16, "bulk": False}, "float32"),
        ({"lines": 16, "tile": 64, "bulk": True}, "float32"),
        ({"lines": 64, "tile": 32, "bulk": True}, "float8_e4m3fn"),
        ({"lines": 4, "tile": 64, "bulk": False}, "float8_e5m2"),
    ],
    ids=str,
)
def test_cut_otherwise(shape, dtype, monkeypatch):
    load_providers(["triton"])
    from quire.kernels.triton.attention import cascade

    monkeypatch.setattr(cascade, "shape_of", lambda *_: cascade.Shape(**shape, stages=2, warps=4))
    compared = 0
    for spec, kwargs in attend.samples():
        (group,) = kwargs["step"].groups
        if group.shared is None or spec.step != "decode" or spec.window is not None or spec.head_dim != 16:
            continue
        wanted = dataclasses.replace(spec, soft_cap=2.0, kv_dtype=dtype)
        pages = dataclasses.replace(kwargs["pages"], k=kwargs["pages"].k.to(dtypes[dtype]))
        pages = dataclasses.replace(pages, v=pages.v.to(dtypes[dtype]))
        kwargs = {**kwargs, "spec": wanted, "pages": pages}
        got = attend.providers["triton"].function(**copy.deepcopy(kwargs))
        torch.testing.assert_close(got, attend(**copy.deepcopy(kwargs)), rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared
