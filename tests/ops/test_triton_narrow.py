"""Triton's conversions of 8 bits by whole numbers: the same bits as the reference's, for every value that there is."""

import pytest
import torch

from quire.ops.narrow import LARGEST, narrowed, widened
from tests.ops.triton import needs_interpreter

pytestmark = [
    pytest.mark.torch,
    needs_interpreter,
]

DTYPES = pytest.mark.parametrize("dtype", LARGEST, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def kernels():
    from tests.ops import triton_narrow

    return triton_narrow


@DTYPES
def test_every_byte_is_worth_what_the_reference_says(dtype, kernels):
    stored = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(
        kernels.widen(stored, dtype), widened(stored.view(dtype), torch.float16), rtol=0, atol=0, equal_nan=True
    )


@DTYPES
def test_what_is_stored_has_the_bits_of_the_reference(dtype, kernels):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    between = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * LARGEST[dtype] / 2
    # The interpreter warns of NaN that is not the usual one.
    x = torch.cat([every.where(~every.isnan(), torch.nan), between, between * 2.0**-16])
    got, want = kernels.narrow(x, dtype, 3.0), narrowed(x, dtype, 3.0)
    real = ~x.isnan()
    assert torch.equal(got[real], want.view(torch.uint8)[real])
    assert got.view(dtype)[~real].isnan().all()
