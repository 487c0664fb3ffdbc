"""How kernels are cut on which device: data, one file per device, and `default.json` for all that it does not settle.

A file maps a name of kernels to rules, `{"when": {fact: value or [least, most]}, "use": {parameter: value}}`; the
first rule whose facts all hold is used, those of the device before the default's. A kernel's last default rule asks for
nothing, so that there always is an answer. Files are named like the device, in small letters, with `-` for spaces.
Called by the kernels' hosts; `benchmarks/attention.py` and `benchmarks/dense.py` measure what the files say.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import torch

from quire.kernels.triton.launch import INTERPRETED


def choose(kernel: str, device: torch.device, facts: Mapping[str, int]) -> dict[str, Any]:
    """The parameters that the files give `kernel` on `device` for what is to be computed."""
    for rule in (*_rules(_name(device)).get(kernel, ()), *_rules("default")[kernel]):
        if all(_holds(facts[name], wanted) for name, wanted in rule["when"].items()):
            used: dict[str, Any] = rule["use"]
            return used
    raise LookupError(f"default.json has no rule for {kernel} with {dict(facts)}")


def _holds(fact: int, wanted: int | list[int]) -> bool:
    return wanted[0] <= fact <= wanted[1] if isinstance(wanted, list) else fact == wanted


@functools.cache
def _name(device: torch.device) -> str:
    if INTERPRETED or device.type != "cuda":
        return "default"
    return torch.cuda.get_device_name(device).lower().replace(" ", "-")


@functools.cache
def _rules(name: str) -> dict[str, list[dict[str, Any]]]:
    file = resources.files(__package__) / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}
