"""What config.json leaves out because transformers has it as a default means the same here; absurd values are named."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoConfig

from quire import models
from quire.base.errors import CheckpointError
from quire.checkpoint.defaults import completed
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.layers.decoder import Decoder
from quire.parallel.mesh import Mesh
from tests.models.checkpoints import BASE, FAMILY

pytestmark = pytest.mark.torch
# What says which model it is; readers need it, and checkpoints always have it.
KEPT = {"model_type", "vocab_size"}
# transformers writes what follows from other fields; the plans of attention say whether it does here, too.
UNUSED = {"sliding_window", "layer_types", "rope_parameters"}
UNUSED |= {"time_step_limit"}  # from 0 to infinity is no limit
WORDS = {"mamba_d_head": "auto"}
"""Defaults instead of which transformers writes the number that they stand for."""
SIZES = ("num_", "n_", "hidden_size", "_eps", "epsilon", "intermediate_size", "head_dim", "vocab_size")
"""How fields begin or end of which nothing good can be less than 0, a word or a million millions."""


def built(folder: Path, config: dict[str, Any]) -> Decoder:
    (folder / "config.json").write_text(json.dumps(config))
    build = Build(Mesh(), torch.float32, torch.device("meta"))
    model = models.build(read_facts("x", folder), build)
    assert isinstance(model, Decoder)
    return model


def check_defaults(family: str, config: type[msgspec.Struct], theirs: dict[str, Any]) -> None:
    """Also those which the tiny checkpoints set otherwise. None is what follows from other fields."""
    early = completed({"model_type": family})
    for field in msgspec.structs.fields(config):
        name, ours = field.encode_name, early.get(field.encode_name, field.default)
        switched_off = name == "sliding_window" and theirs.get("use_sliding_window") is False
        if ours not in (None, msgspec.NODEFAULT) and name in theirs and not switched_off:
            assert ours in (theirs[name], WORDS.get(name)), name


@pytest.mark.parametrize("family", FAMILY)
def test_defaults_may_be_left_out(family: str, tmp_path: Path) -> None:
    fields = {**BASE, **FAMILY[family]}
    made = AutoConfig.for_model(family, **{name: value for name, value in fields.items() if value is not ...})
    full = json.loads(made.to_json_string(use_diff=False))
    defaults = json.loads(type(made)().to_json_string(use_diff=False))
    short = {name: value for name, value in full.items() if name in KEPT or defaults.get(name) != value}
    assert len(short) < len(full)
    one, other = built(tmp_path, full), built(tmp_path, short)
    for name in one.config.__struct_fields__:
        if name not in UNUSED:
            assert getattr(other.config, name) == getattr(one.config, name), name
    assert other.rope == one.rope
    layers = range(one.config.num_hidden_layers)
    assert [other.attention(i) for i in layers] == [one.attention(i) for i in layers]
    check_defaults(family, type(one.config), defaults)


@pytest.mark.parametrize("family", FAMILY)
def test_absurd_values_are_named(family: str, tmp_path: Path) -> None:
    fields = {**BASE, **FAMILY[family]}
    made = AutoConfig.for_model(family, **{name: value for name, value in fields.items() if value is not ...})
    full = json.loads(made.to_json_string(use_diff=False))
    read = built(tmp_path, full).config.__struct_encode_fields__
    # Lengths are told by the readers' name for them.
    tried = [name for name in read if (name.startswith(SIZES) or name.endswith(SIZES)) and name != "n_positions"]
    assert len(tried) >= 4
    for name in tried:
        for value in (-1, "many", 1 << 40):
            with pytest.raises(CheckpointError, match=name):
                built(tmp_path, {**full, name: value})
