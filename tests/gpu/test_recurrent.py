"""Recurrent state on a real GPU: kernels against the reference; engines with recorded steps and shared states."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from quire.ops.delta import DeltaSpec, DeltaWeights
    from quire.ops.recurrent import StatePages, state_step
    from quire.ops.registry import OPS, load_providers
    from quire.ops.ssd import ScanSpec, ScanWeights
    from tests.gpu.test_engine import generate, prompts
    from tests.tokenizer.samples import make_byte_bpe

HYBRID = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "dtype": "float32",
}
CONFIGS = {
    "qwen3_5_text": {
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "mamba_n_heads": 8,
        "mamba_d_state": 64,
        "num_local_experts": 0,
        "shared_intermediate_size": 512,
        "attention_multiplier": 0.1,
    },
}
STEPS = [[1] * 33, [300], [1, 1, 70, 200, 3], [64, 128, 65], [70] * 24]


def cases(dtype, keys=128, values=128):
    """Of both recurrences: name, sizes, values and gates of a token, a state's shape, weights."""
    rates = [torch.rand(8) for _ in range(3)]
    delta = DeltaSpec(4, 8, keys, values, dtype)
    yield "gated_delta_rule", delta, sum(delta.widths), 16, (8, keys, values), DeltaWeights(*rates[:2])
    scan = ScanSpec(8, 2, values // 2, keys, dtype=dtype)
    yield "ssd_scan", scan, sum(scan.widths), 8, (8, values // 2, keys), ScanWeights(*rates)


def on_gpu(step):
    group = step.groups[0]
    moved = {name: getattr(step, name).cuda() for name in ("token_ids", "positions", "query_start", "seq_lens")}
    groups = (replace(group, page_table=group.page_table.cuda(), slots=group.slots.cuda()),)
    return replace(step, groups=groups, derived={}, **moved)


def check(case, most, counts):
    name, spec, width, gates, shape, weights = case
    kind = getattr(torch, spec.dtype)
    # Every other sequence goes on, within its page or into the next one.
    step, pages = state_step(counts, [n + 13 * (i % 2) for i, n in enumerate(counts)], 16)
    x, g = torch.randn(sum(counts), width).to(kind) * 0.3, torch.randn(sum(counts), gates).to(kind)
    state = torch.randn(pages, *shape)
    kept = [StatePages(torch.zeros(1), state.clone(), 0), StatePages(torch.zeros(1).cuda(), state.cuda(), 0)]
    want = OPS[name].reference(x, g, weights, kept[0], step, spec)
    moved = type(weights)(*(getattr(weights, field).cuda() for field in weights.__slots__))
    got = OPS[name].providers["triton"].function(x.cuda(), g.cuda(), moved, kept[1], on_gpu(step), spec).cpu()
    assert (got.float() - want.float()).norm() <= most * want.float().norm()
    assert (kept[1].state.cpu() - kept[0].state).norm() <= most * kept[0].state.norm()


@pytest.mark.parametrize("counts", STEPS, ids=str)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_recurrences_equal_the_reference(dtype, most, counts):
    load_providers(["triton"])
    torch.manual_seed(0)
    for case in cases(dtype):
        check(case, most, counts)


@pytest.mark.parametrize("sizes", [(12, 10), (16, 16), (32, 32), (64, 32), (64, 64), (16, 128), (128, 16)], ids=str)
def test_small_heads_equal_the_reference(sizes):
    """Compilers have made wrong addresses of tiles narrower than a chunk is long."""
    load_providers(["triton"])
    torch.manual_seed(0)
    for case in cases("bfloat16", *sizes):
        check(case, 2e-2, [45, 23, 70])


@pytest.mark.parametrize("family", CONFIGS)
def test_tokens_equal_the_reference(family, tmp_path):
    make_byte_bpe(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **HYBRID, **CONFIGS[family]}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    given = [prompt[:90] for prompt in prompts(24)]
    settings = {"model": str(tmp_path), "load_format": "dummy", "num_gpu_blocks_override": 400, "max_model_len": 256}
    want, _ = generate(given, kernels="reference", enforce_eager=True, max_num_seqs=24, **settings)
    for changes in ({}, {"enforce_eager": True}, {"max_num_batched_tokens": 96}):
        got, stats = generate(given, max_num_seqs=24, **(settings | changes))
        assert got == want
        assert stats.prefix_hits > 0 or not changes
