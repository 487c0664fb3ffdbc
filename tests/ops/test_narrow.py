"""Rounding to 8 bits: to the nearest of all 256 values, ties to even, bounded, and NaN stays NaN."""

import pytest
import torch

from quire.ops.narrow import LARGEST, narrowed, raw, widened

pytestmark = pytest.mark.torch

DTYPES = pytest.mark.parametrize("dtype", LARGEST, ids=lambda dtype: str(dtype).removeprefix("torch."))


def nearest(x, dtype):
    """By looking at every value that there is: the nearest; of two equally near ones, the one that ends in a 0 bit."""
    bits = torch.arange(128, dtype=torch.uint8)
    values = bits.view(dtype).double()
    finite = values.isfinite()
    values, odd = values[finite], bits[finite].double() % 2
    distance = (x.double().abs().clamp(max=LARGEST[dtype])[:, None] - values).abs()
    nearest = distance == distance.min(1, keepdim=True)[0]
    return values[torch.where(nearest, odd, torch.inf).argmin(1)] * torch.where(x.signbit(), -1.0, 1.0)


@DTYPES
def test_every_bfloat16_goes_to_the_nearest(dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = x[x.isfinite()]
    assert torch.equal(narrowed(x, dtype).double(), nearest(x, dtype))


@DTYPES
def test_what_is_too_large_is_bounded_and_nan_stays(dtype):
    x = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, LARGEST[dtype]])
    most = LARGEST[dtype]
    expected = torch.tensor([most, -most, most, -most, torch.nan, most])
    torch.testing.assert_close(narrowed(x, dtype).float(), expected, rtol=0, atol=0, equal_nan=True)


@DTYPES
def test_a_scale_moves_the_range(dtype):
    x = torch.tensor([3.0, -LARGEST[dtype] * 4])
    kept = narrowed(x, dtype, 4.0)
    assert kept.float().tolist() == [0.75, -LARGEST[dtype]]
    assert widened(kept, torch.bfloat16, 4.0).tolist() == x.tolist()


def test_wider_dtypes_know_no_scale():
    x = torch.tensor([1.5, 1e30])
    assert narrowed(x, torch.float32, 3.0).tolist() == x.tolist()
    assert widened(x.bfloat16(), torch.float32, 3.0)[0] == 1.5
    assert raw(x) is x
