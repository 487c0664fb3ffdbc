"""The files that say how kernels are cut: every rule makes a shape, and the default answers whatever is asked."""

import importlib.util
import json
from importlib import resources

import pytest
import torch

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]

FACTS = {
    "decode attention": ("pairs", "group", "bytes", "itemsize", "shares"),
    "one row": ("inputs", "outputs", "gate"),
    "one quantized row": ("inputs", "outputs", "gate", "bits", "floats", "whole"),
    "few rows": ("rows", "inputs", "outputs", "gate", "small"),
    "own products": ("inputs", "outputs", "small"),
}


def files():
    from quire.kernels.triton import tuned

    return {
        file.name: json.loads(file.read_text()) for file in resources.files(tuned).iterdir() if file.suffix == ".json"
    }


def test_every_rule_makes_a_shape():
    from quire.kernels.triton.attention import decode
    from quire.kernels.triton.dense import gemv, quantized, skinny

    shapes = {"decode attention": decode.Shape, "one row": gemv.Shape, "one quantized row": quantized.gemv.Shape}
    shapes |= {"few rows": skinny.Rule, "own products": lambda rows: rows}
    for tables in files().values():
        for kernel, rules in tables.items():
            for rule in rules:
                assert set(rule["when"]) <= set(FACTS[kernel])
                shapes[kernel](**rule["use"])


def test_the_default_ends_with_rules_for_all():
    assert all(rules[-1]["when"] == {} for rules in files()["default.json"].values())


@pytest.mark.parametrize("pairs", [1, 2, 3, 8, 9, 64, 65, 4096])
def test_the_first_rule_that_holds_is_used(pairs):
    from quire.kernels.triton import tuned

    facts = {"pairs": pairs, "group": 4, "bytes": 256, "itemsize": 2, "shares": 0}
    found = tuned.choose("decode attention", torch.device("cpu"), facts)
    assert found.get("early", False) == (pairs <= 64)
    # Two programs for each of 128 multiprocessors.
    assert not found.get("early") or 128 <= pairs * found["splits"] <= 256


def test_a_device_comes_before_the_default(monkeypatch):
    from quire.kernels.triton import tuned

    facts = {"inputs": 1024, "outputs": 4096, "gate": 0}
    monkeypatch.setattr(tuned, "_name", lambda device: "nvidia-h200")
    assert tuned.choose("one row", torch.device("cuda"), facts) == files()["nvidia-h200.json"]["one row"][0]["use"]
    monkeypatch.setattr(tuned, "_name", lambda device: "a card of next year")
    assert tuned.choose("one row", torch.device("cuda"), facts) == files()["default.json"]["one row"][-1]["use"]


def test_what_no_rule_fits_is_an_error(monkeypatch):
    from quire.kernels.triton import tuned

    monkeypatch.setattr(tuned, "_rules", lambda name: {"one row": [{"when": {"gate": [2, 3]}, "use": {}}]})
    with pytest.raises(LookupError, match="no rule for one row"):
        tuned.choose("one row", torch.device("cpu"), {"gate": 1})
