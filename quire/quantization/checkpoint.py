"""A quantized checkpoint as layers and the loader ask for it: how each of its matrices is held.

Picks the format: the one that config.json names, or where it names none the one whose tensors are there. Matrices that
the metadata announces and the files have in full precision are quantized while they are read, and that is said.
"""

import importlib
import pkgutil
from dataclasses import replace
from typing import Any, Protocol, cast

from quire.base.errors import CheckpointError
from quire.quantization import formats
from quire.quantization.scaled import Form
from quire.quantization.scheme import TABLES, Format, Matrix, Scheme, Source

ONLINE: dict[str, Form] = {
    "fp8": Form("fp8_e4m3", None),
    "nvfp4": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
    "mxfp4": Form("fp4_e2m1", 32, "e8m0"),
    "modelopt": Form("fp8_e4m3", None),
    "modelopt_fp4": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
}
"""Forms that full-precision weights are quantized to while they load; int8 and int4 are `Canonical`'s."""


ASKED_LAST = ("awq", "modelopt")
"""Formats whose marks others have, too: GPTQ's tensors are AWQ's and one more, and many have scales."""


class _Module(Protocol):
    """What a file of `formats/` has."""

    METHODS: tuple[str, ...]
    """Names of the format in config.json and in `--quantization`."""
    MARKS: tuple[str, ...]
    """Endings of names that only tensors of this format have."""

    def make(self, config: dict[str, Any]) -> Format:
        """The format of a checkpoint whose config.json has this `quantization_config`."""
        ...


class Quantized:
    """The quantized matrices of one checkpoint.

    Args:
        told: whether there is metadata that calls matrices quantized.

    Attributes:
        name: of the format.
        announced: modules that the metadata calls quantized and whose tensors are of full precision.
        unfolded: bytes of ggml's blocks that became codes with scales, and of these.
    """

    def __init__(self, name: str, form: Format, source: Source, told: bool = True) -> None:
        self.name, self.source, self._told = name, source, told
        self.announced: set[str] = set()
        self.unfolded = (0, 0)
        self._format = form
        self._schemes: dict[Matrix, Scheme | None] = {}

    def scheme(self, matrix: Matrix) -> Scheme | None:
        """How a matrix is held; None is in full precision. Raises CheckpointError."""
        if matrix not in self._schemes:
            self._schemes[matrix] = self._format.scheme(matrix, self.source)
        return self._schemes[matrix]

    def online(self, matrix: Matrix) -> Form | None:
        """What a matrix of full precision is quantized to, since the metadata says so."""
        if not self._told or matrix.module.endswith(TABLES):
            return None
        entries = self.source.entries
        entry = entries.get(f"{matrix.module}.weight") or entries.get(matrix.module)
        # The metadata has the file's names, which those of a language model within a larger one are not.
        named = matrix if entry is None else replace(matrix, module=entry.name.removesuffix(".weight"))
        form = self._format.announced(named)
        if form is not None:
            self.announced.add(matrix.module)
        return form

    def notes(self) -> list[str]:
        """Sentences for the user."""
        many, (read, held), said = len(self.announced), self.unfolded, list[str]()
        if many:
            what = f"{many} matrices are of full precision though the checkpoint calls them {self.name}: "
            said.append(what + "they were quantized while they were loaded")
        if held > read:
            what = f"ggml's blocks of {read / 2**30:.2f} GiB became codes with scales, as kernels read them: "
            said.append(what + f"these take {held / 2**30:.2f} GiB of the device's memory")
        return said


def resolve_method(config: dict[str, Any], source: Source, asked: str | None) -> tuple[Quantized | None, str | None]:
    """The quantized checkpoint behind `source`, if it is one, and what matrices of full precision become, if anything.

    Arguments and errors as of `find`; also raises CheckpointError where nothing can be quantized as was asked.
    """
    found = find(config, source, asked)
    if found is not None or asked is None:
        return found, None
    if asked not in (*ONLINE, "int8", "int4"):
        raise CheckpointError(
            f"quantization={asked}: the checkpoint is of full precision; it can be quantized while it is loaded to "
            f"int8, int4, {', '.join(ONLINE)}"
        )
    return None, asked


def find(config: dict[str, Any], source: Source, asked: str | None = None) -> Quantized | None:
    """The quantized checkpoint behind `source`, or None for one of full precision.

    Args:
        config: `quantization_config` of config.json, {} if there is none.
        asked: a name that the user gave.

    Raises CheckpointError for a format that is unknown, or another than was asked for.
    """
    modules = _modules()
    method = str(config.get("quant_method", "")).lower()
    name = next((name for name, module in modules.items() if method in module.METHODS), None)
    if method and name is None:
        known = sorted(method for module in modules.values() for method in module.METHODS)
        raise CheckpointError(f"config.json: quant_method {method!r} is not supported; supported: {', '.join(known)}")
    if name is None:
        name = _by_tensors(modules, source)
    if name is None:
        return None
    if asked is not None and asked not in modules[name].METHODS and asked != name:
        raise CheckpointError(
            f"quantization={asked}: the checkpoint is {modules[name].METHODS[0]}; leave quantization unset"
        )
    return Quantized(name, modules[name].make(config), source, told=bool(method))


def _by_tensors(modules: dict[str, _Module], source: Source) -> str | None:
    for name, module in modules.items():
        if any(entry.endswith(module.MARKS) for entry in source.entries if module.MARKS):
            return name
    return None


def _modules() -> dict[str, _Module]:
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    names.sort(key=lambda name: (name in ASKED_LAST, name))
    return {name: cast(_Module, importlib.import_module(f"{formats.__name__}.{name}")) for name in names}
