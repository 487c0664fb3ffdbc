"""The environment: the only file that reads `os.environ`.

Settings come as `QUIRE_SECTION__FIELD`; everything else is asked for by name. Whoever needs a variable asks here, so
that one search shows all that the environment can change. Called by `sources`, and by folders that read one variable.
"""

import os
from collections.abc import Mapping
from dataclasses import fields

from quire.base.logging import get_logger, warn_once
from quire.base.registry import did_you_mean
from quire.config.fields import SECTIONS

logger = get_logger(__name__)

PREFIX = "QUIRE_"
OTHER_NAMES = {
    "deterministic": "VLLM_BATCH_INVARIANT",
    "allow_long_max_model_len": "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
    "api_key": "VLLM_API_KEY",
}
"""Variables of other servers that say the same as a setting, by its name."""
NO_SETTINGS = frozenset({"QUIRE_CPU_ISA", "QUIRE_REQUIRE_NATIVE"})
"""Variables that are asked for by name: which instructions the CPU kernels use, and one that only setup.py reads."""


def read(name: str) -> str | None:
    """The variable `name`, or None when it is not set."""
    return os.environ.get(name)


def snapshot() -> dict[str, str]:
    """A copy of the whole environment, for reports and for the environment of child processes."""
    return dict(os.environ)


def computing() -> dict[str, str]:
    """What a process that computes should have in its environment before it loads torch, less what the user has chosen.

    Threads of OpenMP that wait for work spin for milliseconds by default. Where anything else runs on the machine they
    spin in the way of the thread they wait for. So many turns are some 50 us: as fast as ever on a quiet machine, and
    many times faster on a busy one (figures in docs/journal.md).
    And torch takes large tensors in the CPU's memory from huge pages: weights are read a fifth to a quarter faster.
    """
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "10000"}
    wanted = {**waiting, "THP_MEM_ALLOC_ENABLE": "1"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def become_computing() -> None:
    """Set this process's own environment as `computing` says. For commands that are about to load torch."""
    os.environ.update(computing())


def variable(section: str, name: str) -> str:
    """The environment name of a setting: `variable("model", "dtype")` is `QUIRE_MODEL__DTYPE`."""
    return f"{PREFIX}{section}__{name}".upper()


def settings(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Field name to text, for every setting that the environment holds.

    A variable that begins with QUIRE_ and is no setting gets one warning with the nearest names.

    Args:
        environ: read instead of the process's environment.
    """
    source = os.environ if environ is None else environ
    known = {variable(section, f.name): f.name for section, cls in SECTIONS.items() for f in fields(cls)}
    found = {}
    for name, text in source.items():
        if name in known:
            found[known[name]] = text
        elif name.startswith(PREFIX) and name not in NO_SETTINGS:
            warn_once(logger, f"{name} is no setting and changes nothing; {_remedy(name, list(known))}")
    return found


def of_others(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """As `settings`, from the variables of OTHER_NAMES. An empty one says nothing: compose files set them so."""
    source = os.environ if environ is None else environ
    return {name: source[other] for name, other in OTHER_NAMES.items() if source.get(other)}


def _remedy(name: str, known: list[str]) -> str:
    # QUIRE_PORT is a likely slip for QUIRE_SERVER__PORT, so a right field without its section counts as near.
    same = [k for k in known if k.split("__")[1] == name.removeprefix(PREFIX)]
    return did_you_mean(name, same or known, "names are QUIRE_SECTION__FIELD, see `quire config`")
