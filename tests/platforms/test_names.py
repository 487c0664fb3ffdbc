"""Every kind of device has its line in all tables that are read by its name."""

from typing import get_args

import pytest

from quire.config.resolve import DEFAULTS
from quire.config.spec import PlatformName
from quire.executors.rank import BACKENDS
from quire.platforms import GPU_PLATFORMS
from quire.platforms.selection import KINDS

pytestmark = pytest.mark.torch


def test_every_platform_has_its_lines() -> None:
    names = set(get_args(PlatformName))
    assert names == DEFAULTS.keys() == BACKENDS.keys()
    assert names - {"cpu"} == KINDS.keys() == {module.__name__.rpartition(".")[2] for module in GPU_PLATFORMS}
