"""What tests of the compiled CPU kernels share."""

from collections.abc import Iterator

import pytest

from quire.base.errors import PlatformError
from quire.platforms import native

INSTRUCTIONS = ("avx2", "avx512", "avx512_bf16", "amx", "neon")


@pytest.fixture(params=INSTRUCTIONS, scope="module")
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Has the kernels use these instructions, and two threads."""
    import torch

    from quire.ops.registry import load_providers

    load_providers(["cpu"])
    library, best = native.load()
    native.set_threads(2)
    try:
        yield native.start(library, request.param)
    except PlatformError:
        pytest.skip(f"this processor has no {request.param}")
    finally:
        native.start(library, best)
        native.set_threads(torch.get_num_threads())
