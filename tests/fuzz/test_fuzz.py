"""Bytes from outside, damaged in every way that we can think of: a typed error, or a right answer, and never a crash.

`corpus/` holds inputs that once went wrong, by target; each is read again in every run. A new one is added by writing
the bytes of hypothesis's example to a file there.
"""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.plain

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())
ODD = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff" * 8,
    b"\0" * 8,
    b"-1",
    b"1e999",
    b"{",
    b"[",
    b'"',
    b"\\u",
    b"\n\n",
    b"<",
]


def read(target: str, raw: bytes) -> None:
    """Read `raw`; what is not allowed to be raised is a failure."""
    try:
        TARGETS[target].read(raw)
    except TARGETS[target].raises:
        pass


def damaged(seed: bytes, rng: random.Random) -> bytes:
    """`seed` with some bytes changed, taken out, put in or repeated."""
    raw = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(raw) + 1)
        length = rng.choice([1, 1, 2, 4, 8, 30])
        match rng.randrange(6):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = rng.choice(ODD)
            case 3:
                raw[at:at] = raw[at : at + length] * rng.choice([1, 2, 50])
            case 4:
                raw[at : at + length] = rng.choice(ODD)
            case 5:
                del raw[at:]
    return bytes(raw[: 1 << 16])


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_went_wrong(path: Path) -> None:
    read(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_whole_inputs_are_read(target: str) -> None:
    for seed in TARGETS[target].seeds:
        read(target, seed)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=max(settings().max_examples, 300))
@given(number=st.integers(0, 1 << 32))
def test_damaged_inputs(target: str, number: int) -> None:
    rng = random.Random(number)
    read(target, damaged(rng.choice(TARGETS[target].seeds), rng))


@pytest.mark.parametrize("target", TARGETS)
@given(raw=st.binary(max_size=300))
def test_any_bytes(target: str, raw: bytes) -> None:
    read(target, raw)
