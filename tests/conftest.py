"""Settings for all tests: hypothesis, random numbers, one computing thread per process, Triton without a GPU."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from quire.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.samples import MAKERS

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where there is no GPU, Triton's kernels are interpreted. It must be known before they are imported.
if not any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Each property tries the same examples in each run, so that no run fails by chance; "long" looks for new ones.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("default"), derandomize=False, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_finish() -> None:
    """Python's collector is asked by each engine that is closed: it need not go through all that tests import."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def thawed() -> Iterator[None]:
    """What was frozen above is not, as in a process of a user."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def random_numbers() -> None:
    """torch's random numbers are the same in each run, whatever this process has tested before."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer.load(make(folder / name)) for name, make in MAKERS.items()}
