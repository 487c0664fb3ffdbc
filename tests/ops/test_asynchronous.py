"""Products of matrices in the kernel that reads prompts run beside other work: nothing waits for each of them."""

import pytest

from tests.ops.triton import needs_triton, said_by

pytestmark = [pytest.mark.torch, needs_triton]


def test_products_are_not_waited_for_one_by_one() -> None:
    products, waits = said_by("asynchronous")
    # Where the assembler must guard a sum, it waits after every product.
    assert 0 < 3 * waits < products
