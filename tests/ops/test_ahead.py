"""Kernels that are compiled ahead are found where they are launched, by a process that compiled none of them."""

import pytest

from tests.ops.triton import needs_triton, said_by

pytestmark = [pytest.mark.torch, needs_triton]


def test_launches_find_what_was_compiled_ahead(tmp_path) -> None:
    seen = said_by("compiled_ahead", TRITON_CACHE_DIR=str(tmp_path))
    assert seen["known"] == [False, True, False]
    assert seen["noted"] == 3
    assert seen["found"] == [["_norm_kernel", True], ["_norm_kernel", True], ["_gate_kernel", True]]
