"""Kernels that start before their predecessor ends touch nothing but weights until they have waited for it."""

import pytest

from tests.ops.triton import needs_triton, said_by

pytestmark = [pytest.mark.torch, needs_triton]


def test_only_weights_are_read_before_the_wait() -> None:
    assert said_by("early_launch") == []
