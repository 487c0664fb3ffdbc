"""Compute capabilities: whose machine code runs where, and what is computed well."""

import pytest

from quire.platforms.cuda import dtypes, serves

pytestmark = pytest.mark.plain


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_90", (9, 0), True),
        ("sm_80", (8, 6), True),  # same major, later minor
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),  # machine code does not cross a major version
        ("compute_80", (9, 0), True),  # PTX does
        ("compute_120", (11, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("sm_120", (12, 1), True),
        ("gfx906", (9, 0), False),
    ],
)
def test_serves(built: str, capability: tuple[int, int], runs: bool) -> None:
    assert serves(built, capability) is runs


@pytest.mark.parametrize(
    ("capability", "best"),
    [((5, 2), "float32"), ((6, 0), "float16"), ((6, 1), "float32"), ((7, 5), "float16"), ((8, 0), "bfloat16")],
)
def test_dtypes(capability: tuple[int, int], best: str) -> None:
    assert dtypes(capability)[0] == best
    assert "float32" in dtypes(capability)
