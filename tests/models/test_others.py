"""Models without a file of ours, through transformers' own modules: decoders and encoders, and what is refused."""

import json
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, SamplingParams, models
from quire.base.errors import CheckpointError, ConfigError
from quire.checkpoint import pooling
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.loading import fill_dummy
from quire.loading.source import FileSource
from quire.models.transformers.config import read_config
from quire.models.transformers.forward_pass import convolves, exact, refusing
from quire.models.transformers.making import make_model
from quire.models.transformers.model import Adopted
from quire.models.transformers.packed import _waits_for_nothing
from quire.models.transformers.per_sequence import PagedLayer, sharing
from quire.ops.samples import step_over
from quire.parallel.mesh import Mesh
from quire.quantization.checkpoint import resolve_method
from tests.marks import needs_native
from tests.models import checkpoints
from tests.models.driver import Driver
from tests.models.families import FAMILY
from tests.models.judge import NEW, TOLERANCE, check, judge_of
from tests.models.others import APART, OTHER_DECODERS, OTHER_ENCODERS
from tests.pooling import checkpoints as pooled
from tests.pooling.encoders import ENCODERS
from tests.pooling.judge import judged
from tests.pooling.test_families import RAW, TASKS, texts

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
OURS = ("gemma2", "gpt_oss", "opt", "qwen3_moe")
"""Families of ours that both implementations run: soft caps, sinks, a head that calls a part of the model, experts."""
HEADS_OF_THEIR_OWN = ("albert", "eurobert")
"""Whose heads for texts pool in a way that no single state gives."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a model type, made when it is first wanted."""
    folder = tmp_path_factory.mktemp("others")

    def make(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(FAMILY, name, OTHER_DECODERS.get(name) or FAMILY.get(name, {}))
            return checkpoints.make(name, folder / name)

    return cache(make)


def refused(path: Path, build: Build | None = None, **given: Any) -> str:
    empty = build or Build(mesh=Mesh(), dtype=torch.float32, device=CPU)
    with pytest.raises(CheckpointError) as error:
        models.build(read_facts("tiny", path), empty, "transformers", **given)
    return str(error.value)


def changed(path: Path, to: Path, **fields: Any) -> Path:
    """The config of another checkpoint, changed, without weights."""
    to.mkdir()
    config = json.loads((path / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **fields}))
    return to


def equals_transformers(driver: Driver, path: Path) -> None:
    """Logits and greedy tokens of a driver of the checkpoint."""
    judge = judge_of(path)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in (13, 7, 21)]
    for sequence in driver.generate(prompts, NEW):
        check(sequence, judge)


@pytest.mark.parametrize("name", [*OTHER_DECODERS, *OURS])
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, made: Callable[[str], Path]) -> None:
    path = made(name)
    driver = Driver(path, 4, ["torch_native"], impl="transformers" if name in OURS else "auto")
    assert driver.build.provider_names()["model"] == ("apart" if name in APART else "packed")
    equals_transformers(driver, path)


@needs_native
@pytest.mark.parametrize("name", ["longcat_flash", "minicpm3", "dots1"])
def test_packed_weights_give_the_same(name: str, made: Callable[[str], Path]) -> None:
    equals_transformers(Driver(made(name), 4, ["cpu"]), made(name))


@pytest.mark.parametrize(("quantization", "error"), [(None, 0), ("int8", 1e-2)])
@pytest.mark.parametrize("providers", [["torch_native"], pytest.param(["cpu"], marks=needs_native)])
@pytest.mark.parametrize(
    ("name", "module"), [("longcat_flash", "layers.0.mlp.router.classifier"), ("biogpt", "layers.1.fc1")]
)
def test_modules_may_read_values_instead_of_multiplying(
    name: str,
    module: str,
    providers: list[str],
    quantization: str | None,
    error: float,
    made: Callable[[str], Path],
) -> None:
    """The router of LongCat does."""
    judge = AutoModelForCausalLM.from_pretrained(made(name), dtype=torch.float32).base_model
    driver = Driver(made(name), 4, providers, quantization=quantization)
    want, found = judge.get_submodule(module), driver.model.inner.get_submodule(module)
    assert found.weight.shape == want.weight.shape
    assert (found.weight - want.weight).abs().max() <= error
    assert found.bias is want.bias is None or torch.equal(found.bias, want.bias)


def test_the_usual_experts_are_those_of_our_op(made: Callable[[str], Path]) -> None:
    ran = {name: Driver(made(name), 4, impl="transformers") for name in ("dots1", "minimax_m2", "qwen3_moe", "gpt_oss")}
    for driver in ran.values():
        driver.generate([[5] * 9, [6] * 7, [7] * 4], 2)
    ours = {name for name, driver in ran.items() if "moe" in driver.build.provider_names()}
    assert ours == {"dots1", "minimax_m2", "qwen3_moe"}


@pytest.mark.parametrize("name", ["gemma4_text", "minicpm3", "exaone4"])
def test_the_reference_gives_the_same(name: str, made: Callable[[str], Path]) -> None:
    prompts = [[5, 9, 3] * 4, [7] * 6, list(range(3, 20))]
    first, second = (
        Driver(made(name), 3, providers, impl="transformers").generate(prompts, NEW)
        for providers in ([], ["torch_native"])
    )
    assert [sequence.tokens for sequence in first] == [sequence.tokens for sequence in second]


def test_every_encoder_is_proven() -> None:
    assert {*ENCODERS, *OTHER_ENCODERS} == pooling.ENCODERS


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_encoders_run_side_by_side_if_they_can(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, name, OTHER_ENCODERS[name])
    build = Build(mesh=Mesh(), dtype=torch.float32, device=CPU)
    models.build(read_facts("tiny", pooled.make(name, tmp_path)), build)
    assert build.provider_names()["model"] == ("apart" if name in APART else "packed")


@pytest.mark.parametrize("there", [True, False])
def test_convolutions_of_float32_are_float32_and_nothing_stays_set(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "convbert", OTHER_ENCODERS["convbert"])
    monkeypatch.setattr(f"{Adopted.__module__}.convolves", lambda *_: there)
    step, settings, seen = step_over([3], [3], [[1] * 3], 1), torch.backends.cudnn.conv, set[str]()
    model = models.build(read_facts("tiny", pooled.make("convbert", tmp_path)), Build(Mesh(), torch.float32, CPU))
    fill_dummy(model, 0, Mesh())
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_pre_hook(lambda *_: seen.add(settings.fp32_precision))
    before = settings.fp32_precision
    with torch.inference_mode():
        model(step)
    assert seen == {"ieee" if there else before} and settings.fp32_precision == before != "ieee"


def test_only_convolutions_of_float32_on_gpus_could_be_of_less() -> None:
    gpu, layers = torch.device("cuda:0"), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv1d(2, 2, 1))
    assert convolves(layers, gpu)
    assert not convolves(layers, CPU) and not convolves(layers[0], gpu) and not convolves(layers.bfloat16(), gpu)


@pytest.mark.parametrize("allowed", [True, False])
def test_code_may_ask_torch_what_it_takes(allowed: bool) -> None:
    flags = torch.backends.cudnn
    with flags.flags(True, allow_tf32=allowed):
        before = flags.conv.fp32_precision
        with exact():
            assert flags.conv.fp32_precision == "ieee"
            with flags.flags(enabled=False):
                pass
            assert not flags.allow_tf32
        assert (flags.allow_tf32, flags.conv.fp32_precision) == (allowed, before)


def test_precisions_that_were_set_one_by_one_come_back() -> None:
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee" if before == "tf32" else "tf32"
    try:
        with exact():
            assert convolutions.fp32_precision == "ieee"
        assert convolutions.fp32_precision != before
    finally:
        convolutions.fp32_precision = before


def test_memory_that_runs_out_is_not_what_a_model_is_refused_for() -> None:
    with pytest.raises(torch.OutOfMemoryError), refusing(torch.nn.Identity()):
        raise torch.OutOfMemoryError


def test_nor_is_it_why_steps_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(kind: type[Exception]) -> None:
        raise kind

    for name in ("get_sync_debug_mode", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    assert not _waits_for_nothing(lambda: fails(RuntimeError))
    with pytest.raises(torch.OutOfMemoryError):
        _waits_for_nothing(lambda: fails(torch.OutOfMemoryError))


def test_what_was_tried_first_is_gone_before_the_second_try(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[weakref.ref[torch.nn.Module]] = []

    def noted(*args: Any) -> Any:
        assert all(model() is None for model in tried)
        model = make_model(*args)
        tried.append(weakref.ref(model))
        return model

    monkeypatch.setattr("quire.models.transformers.model.make_model", noted)
    assert "text by text" in refused(changed(made("arcee"), tmp_path / "changed", model_type="bart"))
    assert len(tried) == 2


@pytest.mark.parametrize("kind", ["bare", "sequence", "token"])
@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_encoders_equal_transformers(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, name, OTHER_ENCODERS[name])
    path = pooled.make(name, tmp_path, kind)
    if kind == "sequence" and name in HEADS_OF_THEIR_OWN:
        with pytest.raises(CheckpointError, match=r"head of .* needs more"):
            LLM(str(path), threads=1)
        return
    with LLM(str(path), threads=1) as llm:
        outputs = llm.encode(texts(), RAW, pooling_task=TASKS[kind], use_tqdm=False)
    for tokens, output in zip(texts(), outputs, strict=True):
        assert (torch.tensor(output.outputs.data) - judged(path, tokens, kind)).abs().max() < TOLERANCE


def test_an_engine_serves_both_implementations_alike(made: Callable[[str], Path]) -> None:
    """With few pages, so that sequences are preempted, and prompts that begin alike."""
    prompts = [[5, 9, 3, 8] * 5 + [i] * (i + 1) for i in range(3, 11)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    found = []
    for impl in ("quire", "transformers"):
        with LLM(str(made("gemma2")), model_impl=impl, block_size=4, num_gpu_blocks_override=40, threads=1) as llm:
            outputs = [llm.generate(prompts, greedy, use_tqdm=False) for _ in range(2)]
        assert all(output.num_cached_tokens for output in outputs[1])
        found.append([[output.outputs[0].token_ids for output in run] for run in outputs])
    assert found[0] == found[1]


def test_dummy_weights_need_no_files(made: Callable[[str], Path], tmp_path: Path) -> None:
    bare = changed(made("arcee"), tmp_path / "bare")
    (bare / "tokenizer.json").write_bytes((made("arcee") / "tokenizer.json").read_bytes())
    with LLM(str(bare), load_format="dummy", threads=1, max_model_len=32) as llm:
        output = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    assert len(output[0].outputs[0].token_ids) == 4


def test_what_transformers_keeps_in_float32_stays_so(made: Callable[[str], Path], tmp_path: Path) -> None:
    # torch multiplies rows of whole 16 bytes only.
    path = changed(made("dots1"), tmp_path / "wide", moe_intermediate_size=24)
    build = Build(mesh=Mesh(), dtype=torch.bfloat16, device=CPU)
    model = models.build(read_facts("tiny", path), build, "transformers")
    kept = {
        name: tensor.dtype for name, tensor in model.inner.state_dict().items() if "e_score_correction_bias" in name
    }
    assert kept and set(kept.values()) == {torch.float32}
    wide = [parameter for parameter in model.weights if parameter.dtype == torch.float32]
    assert len(wide) == len(kept), "the loader fills the same memory"


def test_tensors_that_nobody_knows_are_told(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(made("arcee"), tmp_path / "more", num_hidden_layers=1)
    for file in made("arcee").glob("*.safetensors*"):
        (path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"left over: model.layers.1"):
        Driver(path, 4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba2", "num_heads": 12, "head_dim": 8, "time_step_limit": [0.0, 1.0]}, "recurrent state"),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "kinds conv keep state"),
        ({"model_type": "bart"}, "takes no positions"),
        ({"model_type": "openai-gpt", "n_layer": 2, "n_head": 4, "n_embd": 48}, "keeps no keys and values in a cache"),
        ({"model_type": "strange"}, "not known to transformers"),
        ({"model_type": "strange", "auto_map": {"AutoConfig": "code.C"}}, "allow it with --trust-remote-code"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, None),
        ({"model_type": "big_bird"}, "override attention_type"),
        ({"norm_offset": 0.0}, "take --model-impl quire"),
        ({"woven_heads": False}, "heads of GGUF files of Falcon"),
        ({"quantization_config": {"quant_method": "gguf", "turned": ["c_attn"]}}, "read the other way round"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
    ],
)
def test_what_cannot_run_is_refused(
    changes: dict[str, Any], says: str | None, made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = changed(made("arcee"), tmp_path / "changed", **changes)
    if says is None:
        build = Build(mesh=Mesh(), dtype=torch.float32, device=CPU, max_model_len=256)
        assert "set max_model_len to 128 at most" in refused(path, build)
    else:
        assert says in refused(path)


def test_positions_that_a_model_counts_by_itself_are_found(made: Callable[[str], Path]) -> None:
    """Llama 4 weighs queries by their place in the batch."""
    with pytest.raises(CheckpointError, match="other means than attention"):
        Driver(made("llama4_text"), 4, impl="transformers").generate([[5] * 9, [6] * 7, [7] * 4], 2)


@pytest.mark.parametrize("online", [True, False])
def test_experts_that_cannot_be_quantized(online: bool, made: Callable[[str], Path], tmp_path: Path) -> None:
    path, given = made("gpt_oss" if online else "dots1"), {"quant_method": "fp8", "weight_block_size": [16, 16]}
    if not online:
        path = changed(path, tmp_path / "quantized", quantization_config=given)
    facts = read_facts("tiny", path)
    quantized, quantization = resolve_method(facts.quantization, FileSource({}, CPU), "int8" if online else None)
    packed = Build(mesh=Mesh(), dtype=torch.float32, device=CPU, quantization=quantization, checkpoint=quantized)
    assert (quantized is None) is online
    assert "experts that cannot be served quantized" in refused(path, packed)


def test_texts_share_a_run_up_to_the_tokens_of_the_longest() -> None:
    step = step_over([1, 1, 1, 3], [8, 8, 8, 8], [[1, 2]] * 4, 4)
    found = [(texts.rows.tolist(), texts.tokens.tolist(), texts.past) for texts in sharing(step, 20)]
    assert found == [([0, 1], [[0], [1]], 7), ([2], [[2]], 7), ([3], [[3, 4, 5]], 5)]


def test_attention_of_its_own_reads_no_narrow_pages(made: Callable[[str], Path]) -> None:
    build = Build(mesh=Mesh(), dtype=torch.float32, device=CPU, kv_dtype=torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match="in full precision only"):
        models.build(read_facts("tiny", made("gptj")), build)


def test_pages_are_tried_before_the_first_step(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(pool: torch.Tensor, slots: torch.Tensor, fresh: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([new.new_zeros(*new.shape[:2], slots.shape[1], new.shape[3]), new], dim=2)

    monkeypatch.setattr(PagedLayer, "_joined", staticmethod(forgets))
    driver = Driver(made("gptj"), 4)
    with pytest.raises(CheckpointError, match="keeps more between two pieces"):
        driver.step([(driver.begin([5, 6]), 2)])


def test_a_model_with_attention_of_its_own_is_preempted_and_finds_prefixes(made: Callable[[str], Path]) -> None:
    prompts = [[5, 9, 3, 8] * 5 + [i] * (i + 1) for i in range(3, 11)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    runs = []
    for pages in (400, 40):
        with LLM(str(made("gptj")), block_size=4, num_gpu_blocks_override=pages, threads=1) as llm:
            runs.append([llm.generate(prompts, greedy, use_tqdm=False) for _ in range(2)])
    assert all(output.num_cached_tokens for output in runs[0][1])
    tokens = [[output.outputs[0].token_ids for output in outputs] for run in runs for outputs in run]
    assert tokens[1:] == tokens[:-1]


def own(path: Path, to: Path, family: str) -> Path:
    """A checkpoint, without weights, with code that calls a family of transformers' by a name of its own."""
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    changed(path, to, model_type="strange", auto_map=classes)
    code = [
        f"from transformers import {family}Config, {family}ForCausalLM",
        f"class OwnConfig({family}Config):",
        "    model_type = 'strange'",
        f"class OwnModel({family}ForCausalLM):",
        "    config_class = OwnConfig",
    ]
    (to / "own.py").write_text("\n".join(code))
    return to


def test_code_of_a_checkpoint_reads_what_is_overridden(made: Callable[[str], Path], tmp_path: Path) -> None:
    """It keeps the one under another name, and the two must fit each other."""
    stretched = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    facts = read_facts("tiny", own(made("arcee"), tmp_path / "arcee", "Arcee"), overrides=stretched)
    assert read_config(facts, True).rope_parameters["factor"] == 2.0
    shorter = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    config = read_config(read_facts("tiny", own(made("cwm"), tmp_path / "cwm", "Cwm"), overrides=shorter), True)
    assert (config.num_hidden_layers, config.layer_types) == (1, ["full_attention"])


def test_code_of_a_checkpoint_runs_when_it_is_trusted(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = own(made("arcee"), tmp_path / "own", "Arcee")
    facts = read_facts("tiny", path)
    build = Build(mesh=Mesh(), dtype=torch.float32, device=CPU)
    assert len(list(models.build(facts, build, trust_remote_code=True).parameters())) > 10
    assert len(build.states) == 2
    shorter = read_facts("tiny", path, overrides={"num_hidden_layers": 1})
    assert models.build(shorter, build, trust_remote_code=True).inner.config.num_hidden_layers == 1
    with pytest.raises(CheckpointError, match="knows no field depth"):
        models.build(read_facts("tiny", path, overrides={"depth": 1}), build, trust_remote_code=True)
