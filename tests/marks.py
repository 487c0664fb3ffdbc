"""Conditions of tests that several files share."""

import pytest

from quire.platforms import detect, native

needs_native = pytest.mark.skipif(not native.is_built(), reason="quire was installed without a compiler")


def need_dtype(dtype: str) -> None:
    """Skip the test where this CPU computes with no such numbers: not every one has instructions for bfloat16."""
    if dtype not in detect("cpu", "auto").dtypes:
        pytest.skip(f"this processor computes no {dtype}")
