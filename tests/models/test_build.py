"""Building models: names to families, wrong configs and damaged checkpoints told by name, what a build collects."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch

from quire import loading, models
from quire.base.errors import CheckpointError, ConfigError
from quire.checkpoint.read import read_facts
from quire.checkpoint.rope import RopeFacts
from quire.layers.build import Build
from quire.layers.rope import rope_table
from quire.loading.recipe import Part
from quire.messages.state import Retention, StateSpec
from quire.models.gemma2 import Gemma2Config
from quire.models.qwen2 import Qwen2Config
from quire.ops.registry import Op, provide
from quire.parallel.mesh import Mesh
from tests.models.checkpoints import make
from tests.models.driver import Driver

pytestmark = pytest.mark.torch

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
SIZES = {key: value for key, value in CONFIG.items() if key not in ("model_type", "max_position_embeddings")}


def new_build(mesh: Mesh | None = None, dtype: torch.dtype = torch.float32, **fields: Any) -> Build:
    return Build(mesh or Mesh(), dtype, torch.device("cpu"), **fields)


def built(folder: Path, mesh: Mesh | None = None, **changes: Any) -> Build:
    """The build of a model with CONFIG and these changes; a change to None removes the field."""
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    build = new_build(mesh)
    models.build(read_facts("x", folder), build)
    return build


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_the_families_of_the_first_release_are_there() -> None:
    assert {"gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe"} <= set(models.supported())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model_type": "blip"},
            r"'blip' has no file .* there are: .*llama.* and it does not run through transformers",
        ),
        ({"model_type": "qwen2_5"}, r"'qwen2_5' has no file of quire's; names close to it: .*qwen2"),
        ({"model_type": "../llama"}, "has no file of quire's"),
        ({"rope_scaling": {"type": "mrope"}}, "rope type 'mrope' is not supported"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "is not supported"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"hidden_size": -8}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple of num_key_value_heads=2"),
        ({"head_dim": 5}, "even number"),
        ({"vocab_size": 1 << 24, "hidden_size": 1 << 24}, "embed_tokens.weight.*does not fit in the memory"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 2}, "layer_types has 2 entries"),
        (
            {
                "model_type": "phi3",
                "original_max_position_embeddings": 8,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]},
            },
            "short_factor has 1 entries, the heads need 2",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries"),
        ({"model_type": "falcon", "alibi": True}, "alibi.*--model-impl transformers"),
        (
            {"model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 4, "architectures": ["OPTModel"]},
            "word_embed_proj_dim=4 is served for text only",
        ),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}}, "llama_4_scaling_beta"),
    ],
)
def test_a_config_that_makes_no_model_is_told_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        built(tmp_path, **changes)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), OSError(errno.EMFILE, "files")])
def test_a_fault_that_is_none_of_memory_is_not_told_as_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", mock.Mock(side_effect=error))
    with pytest.raises(type(error)) as caught:
        new_build().weight(Part("w", (2, 2)))
    assert caught.value is error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none"), MemoryError(), OSError(errno.ENOMEM, "none")])
def test_a_lack_of_memory_is_told_whoever_says_it(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", mock.Mock(side_effect=error))
    with pytest.raises(CheckpointError, match="does not fit in the memory"):
        new_build().weight(Part("w", (2, 2)))


def test_sizes_that_cannot_be_counted_are_a_lack_of_memory() -> None:
    with pytest.raises(CheckpointError, match="does not fit in the memory"):
        new_build().weight(Part("w", (1 << 40, 1 << 40)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_attention_heads": 1}, "num_attention_heads=1"), ({"intermediate_size": 9}, "=9")],
)
def test_sizes_that_no_rank_can_share_are_told_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size=2 does not divide .*{says}"):
        built(tmp_path, Mesh(0, 2), **changes)


def test_a_build_collects_states_and_choices(tmp_path: Path) -> None:
    build = built(tmp_path, num_hidden_layers=3, num_key_value_heads=1)
    spec = StateSpec(2 * 1 * 4 * 4, Retention())
    assert [state.spec for state in build.states] == [spec] * 3
    assert build.provider_names()["attend"] == "reference"
    assert len(build.tables) == 1, "layers share one rotary table"


def test_windows_make_groups_of_their_own(tmp_path: Path) -> None:
    build = built(tmp_path, model_type="gemma2", num_hidden_layers=4, sliding_window=6)
    assert [state.spec.retention.window for state in build.states] == [6, None, 6, None]


def test_the_lists_of_layer_types_count_before_the_rules() -> None:
    kinds = ["full_attention", "sliding_attention"]
    gemma = {**SIZES, "num_hidden_layers": 2, "sliding_window": 6}
    assert [msgspec.convert({**gemma, "layer_types": kinds}, Gemma2Config).window_of(i) for i in range(2)] == [None, 6]
    assert [msgspec.convert(gemma, Gemma2Config).window_of(i) for i in range(2)] == [6, None]
    qwen = {**gemma, "max_window_layers": 1, "use_sliding_window": True}
    assert [msgspec.convert(qwen, Qwen2Config).window_of(i) for i in range(2)] == [None, 6]
    off = {**qwen, "use_sliding_window": False}
    assert [msgspec.convert(off, Qwen2Config).window_of(i) for i in range(2)] == [None, None]


def test_a_state_binds_what_it_allocates() -> None:
    build = new_build(dtype=torch.bfloat16)
    state = build.state(kv_heads=2, head_dim=8, retention=Retention(window=4))
    assert build.states == [state] and state.spec.bytes_per_token == 2 * 2 * 8 * 2
    k, v = state.allocate(5, 16)
    assert k.shape == v.shape == (5, 16, 2, 8) and k.dtype == torch.bfloat16
    state.bind(k, v, 1)
    assert state.k is k and state.v is v and state.group == 1
    state.unbind()
    with pytest.raises(AssertionError):
        _ = state.k


def test_a_provider_is_chosen_once_and_the_refusal_is_kept() -> None:
    op = Op("double", lambda x: 2 * x, list, {})
    op.providers["reference"] = provider = _provider(op)
    provide("odd", op, lambda spec: "only odd numbers" if spec % 2 == 0 else None)(lambda x: x + x)
    build = new_build(providers=["none", "odd"])
    build.op(op, 3)
    assert build.op(op, 4) is provider.function
    assert build.provider_names() == {"double": "odd, reference"}
    assert build.choices[1].refused == {"none": "not implemented", "odd": "only odd numbers"}


def _provider(op: Op) -> Any:
    provide("reference", op)(op.reference)
    return op.providers["reference"]


def test_angles_depend_on_the_position_alone() -> None:
    facts = RopeFacts(max_positions=64)
    short, long = (rope_table(new_build(max_model_len=n), facts, 8) for n in (16, 64))
    assert torch.equal(short, long[:16])
    half = torch.tensor([1.0, 0.1, 0.01, 0.001]) * 5
    torch.testing.assert_close(long[5], torch.cat([half.cos(), half.sin()]))


def test_old_spellings_make_the_same_model(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 9000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = make("qwen3", tmp_path / "q", rope_parameters={**rope, "original_max_position_embeddings": 32})

    def logits() -> torch.Tensor:
        return Driver(folder, 4).generate([[5, 6, 7], [8, 9], [3, 4]], 3)[0].all_logits()

    new = logits()

    def as_before(config: dict[str, Any]) -> None:
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        config["rope_scaling"] = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        config["torch_dtype"] = config.pop("dtype")
        del config["layer_types"]

    rewrite(folder, as_before)
    assert torch.equal(logits(), new)


def test_a_head_that_config_json_forgets_to_tie_is_missed(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "l", tie_word_embeddings=True)
    rewrite(folder, lambda config: config.update(tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        Driver(folder, 4)


def test_a_truncated_shard_is_told_before_anything_is_read(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "l")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated"):
        Driver(folder, 4)


def test_a_config_of_another_size_is_told(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "l")
    rewrite(folder, lambda config: config.update(intermediate_size=60))
    with pytest.raises(CheckpointError, match=r"mlp\.\w+\.weight has shape \(.*\), config.json asks for"):
        Driver(folder, 4)


def test_dummy_weights_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    facts = read_facts("x", tmp_path)
    model = models.build(facts, new_build())
    loading.fill_dummy(model, 0, Mesh())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_reading_a_checkpoint_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    code = (
        "import sys; from quire.checkpoint import headers, names, read; "
        f"read.read_facts('x', names.resolve({str(tmp_path)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_positions_that_no_table_has_are_refused(tmp_path: Path) -> None:
    folder = make("gpt2", tmp_path / "g")
    with pytest.raises(CheckpointError, match=r"wpe.weight has learned vectors for 128 positions; max_model_len=129"):
        Driver(folder, 4, max_model_len=129)


@pytest.mark.parametrize("family", ["gpt2", "glm", "falcon"])
def test_weights_that_are_turned_may_be_quantized(family: str, tmp_path: Path) -> None:
    folder = make(family, tmp_path / family)
    facts = read_facts("x", folder)
    build = new_build(quantization="int8")
    model = models.build(facts, build)
    loading.load(model, loading.opened(facts), Mesh())
    plain = models.build(facts, new_build())
    loading.load(plain, loading.opened(facts), Mesh())
    one, other = (m._layers[0].attention.qkv for m in (model, plain))  # type: ignore[attr-defined]
    storage = one.weight.stored
    rows = storage.rows(one.weight, torch.arange(storage.outputs))
    assert (rows - other.weight).abs().max() < other.weight.abs().max() / 100
