"""Checkpoints saved from a part of a model, or from a larger one."""

import pytest

from quire.checkpoint.headers import TensorEntry
from quire.loading.names import fitted

pytestmark = pytest.mark.torch


def entries(*names: str) -> dict[str, TensorEntry]:
    return {name: TensorEntry(name, "x", "F32", (1,), 0, 4) for name in names}


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (["h.0.ln_1.weight", "wte.weight"], ["transformer.h.0.ln_1.weight", "transformer.wte.weight"]),
        (["layers.0.a", "norm.weight", "lm_head.weight"], ["model.layers.0.a", "model.norm.weight", "lm_head.weight"]),
        (["decoder.layers.0.a"], ["model.decoder.layers.0.a"]),
        (["language_model.model.layers.0.a", "vision_tower.b", "multi_modal_projector.c"], ["model.layers.0.a"]),
        (
            ["model.language_model.layers.0.a", "lm_head.weight", "model.vision_tower.b"],
            ["model.layers.0.a", "lm_head.weight"],
        ),
    ],
)
def test_one_prefix_is_exchanged(have: list[str], want: list[str]) -> None:
    assert sorted(fitted(entries(*have), want)) == sorted(want)


def test_names_that_fit_stay_as_they_are() -> None:
    given = entries("model.layers.0.a", "vision_tower.b")
    assert fitted(given, ["model.layers.0.a"]) is given, "what is left over is reported"
