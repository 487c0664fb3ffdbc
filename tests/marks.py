"""Conditions of tests that several files share."""

import pytest

from quire.platforms import native

needs_native = pytest.mark.skipif(not native.is_built(), reason="quire was installed without a compiler")
