"""config.json and its companions as facts, in old and new spelling; damage is named."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire.base.errors import CheckpointError
from quire.checkpoint.pooling import is_encoder
from quire.checkpoint.read import read_facts, typed
from quire.checkpoint.rope import rope_facts
from tests.checkpoint.files import write_config

pytestmark = pytest.mark.plain


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_facts_of_a_plain_folder(tmp_path: Path) -> None:
    facts = read_facts("mine", write_config(tmp_path, eos_token_id=2))
    assert (facts.name, facts.path, facts.model_type) == ("mine", str(tmp_path), "llama")
    assert (facts.dtype, facts.context_len, facts.vocab_size, facts.eos_token_ids) == ("float32", 64, 11, [2])
    assert facts.generation_config == {} and facts.chat_template is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("adapter_config.json", "merge_and_unload"),
        ("model-Q4_K_M.gguf", "give the .gguf file itself"),
        ("params.json", "makers' own format"),
        ("snapshots/abc/config.json", "below snapshots/"),
        ("README.md", "give a folder in Hugging Face format, or a .gguf file"),
    ],
)
def test_a_folder_of_another_kind_is_told_apart(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"has no config.json; .*{remedy}"):
        read_facts("x", tmp_path)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "torch.float16"}, "float16"),
        ({"dtype": None}, "float32"),
    ],
)
def test_the_dtype_in_either_spelling(fields: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert read_facts("x", write_config(tmp_path, **fields)).dtype == dtype


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=7)
    write(tmp_path, "generation_config.json", {"eos_token_id": [9, 7], "temperature": 0.6})
    facts = read_facts("x", tmp_path)
    assert facts.eos_token_ids == [9, 7]
    assert facts.generation_config["temperature"] == 0.6


def test_the_text_part_of_a_nested_config(tmp_path: Path) -> None:
    inner = {"model_type": "qwen3", "vocab_size": 5, "max_position_embeddings": 8}
    write_config(tmp_path, text_config=inner, vision_config={"depth": 1}, eos_token_id=3)
    facts = read_facts("x", tmp_path)
    assert (facts.model_type, facts.vocab_size, facts.context_len, facts.eos_token_ids) == ("qwen3", 5, 8, [3])
    assert "vision_config" not in facts.config


def test_a_chat_template_that_processors_keep(tmp_path: Path) -> None:
    write_config(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"chat_template": None})
    write(tmp_path, "chat_template.json", {"chat_template": "old"})
    assert read_facts("x", tmp_path).chat_template == "old"


def test_the_chat_template_of_its_own_file_counts_first(tmp_path: Path) -> None:
    write_config(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"chat_template": "old"})
    assert read_facts("x", tmp_path).chat_template == "old"
    write(tmp_path, "chat_template.jinja", "new")
    assert read_facts("x", tmp_path).chat_template == "new"


def test_of_several_chat_templates_the_default_is_taken(tmp_path: Path) -> None:
    write_config(tmp_path)
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert read_facts("x", tmp_path).chat_template == "plain"


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 64),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}}, 64),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 64),
    ],
)
def test_the_context_that_rope_was_stretched_to(rope: dict[str, Any], context: int, tmp_path: Path) -> None:
    assert read_facts("x", write_config(tmp_path, **rope)).context_len == context


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": None}, "model_type"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": "many"}, r"vocab_size"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"max_position_embeddings": 1 << 40}, "max_position_embeddings is"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "must be positive"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1.0}}}, "but no full_attention"),
        ({"rope_parameters": {"original_max_position_embeddings": "4k"}}, "original_context"),
        ({"rope_parameters": 7}, "rope_parameters must be an object"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope needs"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_facts("x", write_config(tmp_path, **changes))


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", "[" * 5000])
def test_an_unreadable_config_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, "config.json", content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_facts("x", tmp_path)


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_facts("x", tmp_path)


def test_rope_is_the_same_in_both_spellings() -> None:
    old = {"max_position_embeddings": 64, "rope_theta": 5000.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    new = {
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5000.0},
    }
    assert rope_facts(old) == rope_facts(new)
    assert rope_facts(old).rope_theta == 5000.0 and rope_facts(old).kind == "yarn"
    assert rope_facts({"max_position_embeddings": 64}).kind == "default"


def test_longrope_takes_the_outer_original_context_and_works_out_its_factor() -> None:
    scaling = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
    config = {"max_position_embeddings": 128, "original_max_position_embeddings": 32, "rope_scaling": scaling}
    facts = rope_facts(config)
    assert (facts.kind, facts.original_context, facts.factor) == ("longrope", 32, 4.0)


class Sizes(msgspec.Struct):
    width: int


def test_rope_scaling_counts_beside_rope_parameters(tmp_path: Path) -> None:
    """So overrides of the one reach checkpoints that were written with the other."""
    older = {"type": "linear", "factor": 4.0}
    newer = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "partial_rotary_factor": 0.5}
    layers = {name: {"rope_type": "default", "rope_theta": 1e4} for name in ("full_attention", "sliding_attention")}
    for written, read in (
        (newer, {**older, "rope_theta": 5e5, "partial_rotary_factor": 0.5}),
        (layers, {**layers, "full_attention": {**older, "rope_theta": 1e4}}),
    ):
        path = write_config(tmp_path, rope_parameters=written)
        config = read_facts("x", path, overrides={"rope_scaling": older}).config
        assert "rope_scaling" not in config and config["rope_parameters"] == read


@pytest.mark.parametrize("layers", [True, False])
def test_rope_scaling_may_name_types_of_layers(layers: bool, tmp_path: Path) -> None:
    plain, stretched = {"rope_type": "default", "rope_theta": 1e4}, {"type": "linear", "factor": 4.0}
    both = ("full_attention", "sliding_attention")
    path = write_config(tmp_path, rope_parameters=dict.fromkeys(both, plain) if layers else plain)
    override = {"full_attention": stretched, "sliding_attention": {**stretched, "rope_theta": 7.0}}
    config = read_facts("x", path, overrides={"rope_scaling": override}).config
    assert [rope_facts(config, name).factor for name in both] == [4.0, 4.0]
    assert [rope_facts(config, name).rope_theta for name in both] == [1e4, 7.0]


def test_rope_scaling_of_no_type_of_layers_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, rope_parameters={"sliding_attention": {"rope_theta": 1e4}})
    with pytest.raises(CheckpointError, match="say which rope_scaling is of"):
        read_facts("x", path, overrides={"rope_scaling": {"type": "linear", "factor": 4.0}})


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("nested", [True, False])
def test_overrides_reach_rope_wherever_it_is(nested: bool, spelling: str, tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5, "original_max_position_embeddings": 64}
    fields = {spelling: rope}
    path = write_config(tmp_path, **({"text_config": fields} if nested else fields))
    found = read_facts("x", path, overrides={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    assert (rope_facts(found.config).kind, rope_facts(found.config).factor) == ("linear", 4.0)
    found = read_facts("x", path, overrides={"rope_scaling": None})
    assert (rope_facts(found.config).kind, found.context_len) == ("default", 64)
    if spelling == "rope_parameters":
        assert rope_facts(found.config).rope_theta == 5e5


def test_overrides_reach_the_text_part_by_its_name_or_without(tmp_path: Path) -> None:
    path = write_config(tmp_path, vocab_size=7, text_config={"vocab_size": 5}, vision_config={"depth": 1})
    for overrides in ({"vocab_size": 9}, {"text_config": {"vocab_size": 9}}, {"vocab_size": 9, "vision_config": {}}):
        facts = read_facts("x", path, overrides=overrides)
        assert facts.vocab_size == 9 and "vision_config" not in facts.config


def test_a_typed_config_names_source_and_field() -> None:
    assert typed({"width": 3, "other": 1}, Sizes, "here").width == 3
    with pytest.raises(CheckpointError, match=r"here: .*width"):
        typed({}, Sizes, "here")


def test_layer_types_have_ropes_of_their_own_in_both_spellings(tmp_path: Path) -> None:
    new = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    for kind in ("full_attention", "sliding_attention"):
        facts = [
            rope_facts({"max_position_embeddings": 64, **config}, kind) for config in ({"rope_parameters": new}, old)
        ]
        assert facts[0] == facts[1]
        assert (facts[0].rope_theta, facts[0].factor) == ((1e6, 8.0) if kind == "full_attention" else (1e4, 1.0))


def test_what_a_model_type_leaves_out_is_filled_in(tmp_path: Path) -> None:
    # As the text part of google/gemma-3-4b-it has it.
    config = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_facts("x", tmp_path)
    assert (facts.vocab_size, facts.context_len) == (262208, 131072)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 5, "n_positions": 7}))
    assert read_facts("x", tmp_path).context_len == 7


@pytest.mark.parametrize(
    ("config", "encoder"),
    [
        ({"model_type": "mpnet"}, True),
        ({"model_type": "unheard-of", "architectures": ["NewForMaskedLM"]}, True),
        ({"model_type": "unheard-of", "architectures": [None]}, False),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, False),
    ],
)
def test_what_fills_in_masks_reads_both_ways(config: dict[str, Any], encoder: bool) -> None:
    assert is_encoder(config) is encoder


@pytest.mark.parametrize("architectures", [[3], {"a": 1}, "BertForMaskedLM"])
def test_damaged_architectures_are_named(architectures: object) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        is_encoder({"architectures": architectures})
