"""The loader on real files: values, dtypes, slices, and reports of what does not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry, read_headers
from quire.loading import fill_dummy, load, opened, reader, staging
from quire.loading.checkpoint import Checkpoint
from quire.loading.recipe import Part, Recipe, Weight
from quire.parallel.mesh import Mesh

pytestmark = pytest.mark.torch


def facts(folder: Path) -> ModelFacts:
    return ModelFacts(
        name="x",
        path=str(folder),
        config={},
        model_type="llama",
        dtype="float32",
        context_len=8,
        vocab_size=8,
        eos_token_ids=[],
        generation_config={},
        chat_template=None,
    )


class Tiny(nn.Module):
    """Parameters that use everything a recipe can say."""

    def __init__(self, mesh: Mesh, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        recipes = {
            "table": Recipe((Part("table", (5, 4), cut=0, pad=1),), again=("head",)),
            "fused": Recipe((Part("q", (4, 4), cut=0), Part("kv", (8, 4), cut=0, first=4, rows=4)), center=1.0),
            "down": Recipe((Part("down", (3, 6), cut=1),)),
            "bias": Recipe((Part("bias", (3,), once=True),)),
        }
        for name, recipe in recipes.items():
            data = torch.full(recipe.shape(mesh.rank, mesh.size), torch.nan, dtype=dtype)
            self.register_parameter(name, Weight(data, recipe))


def tensors() -> dict[str, Tensor]:
    shapes = {"table": (5, 4), "q": (4, 4), "kv": (8, 4), "down": (3, 6), "bias": (3,)}
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, (name, shape) in enumerate(shapes.items())
    }


def write(folder: Path, values: dict[str, Tensor]) -> Checkpoint:
    save_file(values, folder / "model.safetensors")
    return opened(facts(folder))


def test_every_rank_gets_its_values(tmp_path: Path) -> None:
    values = tensors()
    found = write(tmp_path, values)
    for rank in range(2):
        mesh = Mesh(rank, 2)
        model = Tiny(mesh)
        load(model, found, mesh)
        table = torch.cat([values["table"], torch.zeros(1, 4)])
        assert torch.equal(model.table, table[rank * 3 : rank * 3 + 3])
        assert torch.equal(model.fused, torch.cat([values["q"][rank * 2 :][:2], values["kv"][4 + rank * 2 :][:2]]))
        assert torch.equal(model.down, values["down"][:, rank * 3 : rank * 3 + 3])
        assert torch.equal(model.bias, torch.zeros(3) if rank else values["bias"])


def test_small_blocks_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", 20)
    test_every_rank_gets_its_values(tmp_path)


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_dtypes_are_converted(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    values = {name: value.to(stored) for name, value in tensors().items()}
    model = Tiny(Mesh(), wanted)
    load(model, write(tmp_path, values), Mesh())
    assert torch.equal(model.down, values["down"].to(wanted))


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(Tiny(Mesh()), write(tmp_path, tensors()), Mesh(), lambda done, total: seen.append((done, total)))
    # Padding is not read.
    total = (5 * 4 + 8 * 4 + 18 + 3) * 4
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_missing_and_left_over_tensors_are_both_named(tmp_path: Path) -> None:
    values = tensors()
    del values["q"]
    values["stranger"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 missing: q; 1 left over: stranger"):
        load(Tiny(Mesh()), write(tmp_path, values), Mesh())


def test_many_names_are_counted(tmp_path: Path) -> None:
    values = {**tensors(), **{f"stranger{i}": torch.zeros(1) for i in range(9)}}
    with pytest.raises(CheckpointError, match=r"9 left over: .* and 3 more"):
        load(Tiny(Mesh()), write(tmp_path, values), Mesh())


def test_known_extras_are_ignored(tmp_path: Path) -> None:
    extras = {
        "head": torch.zeros(5, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
        "mtp.layers.0.norm.weight": torch.zeros(2),
    }
    load(Tiny(Mesh()), write(tmp_path, {**tensors(), **extras}), Mesh())


def test_a_wrong_shape_is_named_before_anything_is_read(tmp_path: Path) -> None:
    model = Tiny(Mesh())
    with pytest.raises(CheckpointError, match=r"down has shape \(6, 3\), config.json asks for \(3, 6\)"):
        load(model, write(tmp_path, {**tensors(), "down": torch.zeros(6, 3)}), Mesh())
    assert model.table.isnan().all()


def test_a_quantized_tensor_is_named(tmp_path: Path) -> None:
    values = {**tensors(), "down": torch.zeros(3, 6, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match="tensor down is I8"):
        load(Tiny(Mesh()), write(tmp_path, values), Mesh())


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    entry: TensorEntry = read_headers(tmp_path)["table"]
    with Path(entry.file).open("r+b") as file:
        file.truncate(entry.offset + 10)
    [piece] = reader.slices(torch.empty(5, 4), entry, Part("table", (5, 4)).spans(0, 1))
    with reader.Files() as files, pytest.raises(CheckpointError, match="ended while tensor table was read"):
        staging.HostStage().take(piece, files)


def test_dummy_weights_do_not_depend_on_the_cut() -> None:
    whole = Tiny(Mesh())
    fill_dummy(whole, 5, Mesh())
    halves = [Tiny(Mesh(rank, 2)) for rank in range(2)]
    for rank, half in enumerate(halves):
        fill_dummy(half, 5, Mesh(rank, 2))
    assert torch.equal(torch.cat([half.table for half in halves])[:5], whole.table[:5])
    assert torch.equal(torch.cat([half.down for half in halves], dim=1), whole.down)
    assert torch.equal(torch.cat([half.fused[:2] for half in halves]), whole.fused[:4])
    assert torch.equal(halves[0].bias, whole.bias) and not halves[1].bias.any()


def test_dummy_weights_follow_seed_and_name() -> None:
    models = [Tiny(Mesh()) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fill_dummy(model, seed, Mesh())
    assert torch.equal(models[0].down, models[1].down)
    assert not torch.equal(models[0].down, models[2].down)
    assert not torch.equal(models[0].fused[:4], models[0].fused[4:])


def test_dummy_weights_of_many_parts_are_those_of_each() -> None:
    parts = tuple(Part(f"expert{i}", (6, 4), cut=0) for i in range(3))
    together, apart = nn.Module(), nn.Module()
    together.w = Weight(torch.full((18, 4), torch.nan), Recipe(parts))
    for i, part in enumerate(parts):
        apart.register_parameter(f"w{i}", Weight(torch.full((6, 4), torch.nan), Recipe((part,))))
    for model in (together, apart):
        fill_dummy(model, 3, Mesh())
    assert torch.equal(together.w, torch.cat(list(apart.parameters())))
    assert len(together.w.unique()) == 18 * 4


def test_dummy_weights_have_the_scale_of_their_input() -> None:
    recipe = Recipe((Part("w", (300, 400), cut=0),))
    model = nn.Module()
    model.w = Weight(torch.empty(300, 400), recipe)
    model.norm = Weight(torch.empty(4000), Recipe((Part("n", (4000,)),), center=1.0))
    fill_dummy(model, 0, Mesh())
    assert abs(float(model.w.std()) - 400**-0.5) < 0.001 and abs(float(model.w.mean())) < 0.001
    assert abs(float(model.norm.mean()) - 1.0) < 0.01 and 0 < float(model.norm.std()) < 0.1


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(0, 2), Mesh(1, 2)], ids=str)
@pytest.mark.parametrize("block_bytes", [16 << 20, 40])
def test_transposed_and_reordered_tensors(
    mesh: Mesh, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "BLOCK_BYTES", block_bytes)
    up, down, q = (
        torch.randn(shape, generator=torch.Generator().manual_seed(n))
        for n, shape in enumerate([(6, 8), (8, 6), (8, 6)])
    )
    found = write(tmp_path, {"up": up, "down": down, "q": q, "n": torch.arange(8.0).view(2, 4)})
    recipes = {
        "up": Recipe((Part("up", (8, 6), cut=0, transposed=True),)),
        "down": Recipe((Part("down", (6, 8), cut=1, transposed=True),)),
        "q": Recipe((Part("q", (8, 6), cut=0, halves=(4, 4)),)),
        "n": Recipe((Part("n", (8,), cut=0, stacked=True, halves=(4, 2), plus=1.0),)),
    }
    model = nn.Module()
    for name, recipe in recipes.items():
        data = torch.full(recipe.shape(mesh.rank, mesh.size), torch.nan)
        model.register_parameter(name, Weight(data, recipe))
    load(model, found, mesh)
    rows = torch.arange(8).view(mesh.size, -1)[mesh.rank]
    turned = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])[rows]
    assert torch.equal(model.get_parameter("up"), up.T[rows])
    assert torch.equal(model.get_parameter("down"), down.T[:, rows])
    assert torch.equal(model.get_parameter("q"), q[turned])
    assert torch.equal(model.get_parameter("n"), rows + 1.0)
