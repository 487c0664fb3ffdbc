"""Small number types: every bit pattern, against torch's own types, published tables and plain integers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.quantization.elements import ELEMENTS, NATIVE, Element, pack, packed_bytes, unpack

pytestmark = pytest.mark.torch
EVERY = sorted(ELEMENTS)


@pytest.mark.parametrize("name", EVERY)
def test_every_bit_pattern_survives(name: str) -> None:
    element = ELEMENTS[name]
    codes = torch.arange(1 << element.bits, dtype=torch.uint8)[None]
    packed = pack(codes, element.bits)
    assert packed.shape[1] == packed_bytes(codes.shape[1], element.bits)
    assert torch.equal(unpack(packed, element.bits, codes.shape[1]), codes)
    values = element.decode(codes)
    assert torch.equal(values.nan_to_num(7.0), torch.tensor([element.values]).nan_to_num(7.0))
    finite = values.isfinite()
    again = element.decode(element.encode(values[finite]))
    assert torch.equal(again, values[finite])


@given(rows=st.integers(1, 4), count=st.integers(1, 70), bits=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_rows_are_streams_of_bits(rows: int, count: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, count), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, bits)
    for row, stream in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert int.from_bytes(bytes(stream), "little") == number
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_types_of_torch_have_its_values(name: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    want = codes.view(NATIVE[name]).float()
    table = torch.tensor(ELEMENTS[name].values)
    assert torch.equal(table.nan_to_num(7.0, 8.0, 9.0), want.nan_to_num(7.0, 8.0, 9.0))


def test_scales_of_eight_exponent_bits_are_torchs() -> None:
    codes = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(ELEMENTS["e8m0"].decode(codes), codes.view(torch.float8_e8m0fnu).float())
    assert math.isnan(ELEMENTS["e8m0"].values[255])


def test_published_tables() -> None:
    assert ELEMENTS["fp4_e2m1"].values[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert ELEMENTS["fp6_e2m3"].largest == 7.5 and ELEMENTS["fp6_e3m2"].largest == 28
    assert ELEMENTS["fp8_e4m3"].largest == 448 and ELEMENTS["fp8_e5m2"].largest == 57344
    assert ELEMENTS["int4"].values == (0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)
    assert ELEMENTS["uint4b8"].values[0] == -8 and ELEMENTS["uint3"].values[7] == 7


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
@given(values=st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=20))
def test_encoding_rounds_as_torch_does(name: str, values: list[float]) -> None:
    tensor = torch.tensor(values)
    element: Element = ELEMENTS[name]
    assert torch.equal(element.decode(element.encode(tensor)), tensor.to(NATIVE[name]).float())


def test_halves_go_to_even_codes_and_the_rest_saturates() -> None:
    element = ELEMENTS["fp4_e2m1"]
    values = torch.tensor([0.25, 0.75, 1.25, 2.5, 5.0, -5.0, 1e9, -1e9, float("nan")])
    assert element.decode(element.encode(values)).tolist() == [0, 1, 1, 2, 4, -4, 6, -6, 0]
