"""Configs of tiny checkpoints without a file of ours."""

from typing import Any

from tests.models.families import PLAIN

WINDOWS: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
CLASSIC: dict[str, Any] = {**PLAIN, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
OTHER_DECODERS: dict[str, dict[str, Any]] = {
    "afmoe": {**EXPERTS, "sliding_window": 8},
    "apertus": {},
    "arcee": {},
    "biogpt": PLAIN,
    "bitnet": {"head_dim": 12},
    "ctrl": PLAIN,
    "cwm": WINDOWS,
    "diffllama": {},
    "dots1": {
        **WINDOWS,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
    },
    "ernie4_5": {},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 20,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
        "moe_num_shared_experts": 1,
    },
    "exaone4": WINDOWS,
    "exaone_moe": {**EXPERTS, "sliding_window": 8},
    "flex_olmo": {**EXPERTS, "head_dim": 12},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", *["full_attention"] * 3],
        "sliding_window": 8,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [56] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 97,
        "global_head_dim": 24,
        "num_global_key_value_heads": 2,
    },
    "gpt_bigcode": CLASSIC,
    "granitemoe": LOCAL_EXPERTS,
    "granitemoeshared": {**LOCAL_EXPERTS, "shared_intermediate_size": 24},
    "helium": {"head_dim": 12},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 20},
    "jais2": {},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    # Its router reads a weight instead of calling the module; two ranks cannot cut the 7 rows evenly.
    "longcat_flash": {
        **LATENT,
        "num_hidden_layers": ...,
        "intermediate_size": ...,
        "num_layers": 2,
        "ffn_hidden_size": 56,
        "head_dim": 8,
        "n_routed_experts": 5,
        "zero_expert_num": 2,
        "moe_topk": 3,
        "expert_ffn_hidden_size": 20,
    },
    "minicpm3": LATENT,
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nanochat": {},
    "nemotron": {},
    "olmo3": WINDOWS,
    "persimmon": PLAIN,
    "phimoe": LOCAL_EXPERTS,
    "solar_open": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "vaultgemma": {**WINDOWS, "query_pre_attn_scalar": 24},
    # Attention of their own:
    "bloom": {**PLAIN, "n_layer": 2, "n_head": 4, "max_position_embeddings": ..., "seq_length": 128},
    "codegen": {**CLASSIC, "rotary_dim": 8},
    "doge": {},
    "gpt_neo": {
        **PLAIN,
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 8,
    },
    "gptj": {**CLASSIC, "rotary_dim": 8},
    "mpt": {
        **PLAIN,
        "d_model": 48,
        "n_heads": 4,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_position_embeddings": ...,
        "max_seq_len": 128,
    },
    "xglm": {**PLAIN, "d_model": 48, "num_layers": 2, "attention_heads": 4, "ffn_dim": 56},
}
"""Decoders, and what their configs have beside BASE; no file of ours reads them."""
OTHER_ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 24},
    "data2vec-text": {},
    "distilbert": {},
    "electra": {"embedding_size": 24},
    "ernie": {},
    "eurobert": {"num_key_value_heads": 2},
    "jina_embeddings_v3": {},
    "roberta-prelayernorm": {},
    "roc_bert": {"pronunciation_vocab_size": 97, "shape_vocab_size": 97},
    "xlm-roberta-xl": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    # Attention of their own:
    "convbert": {"embedding_size": 24},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "mpnet": {"pad_token_id": 1},
    "roformer": {},
}
APART = (
    *("bloom", "codegen", "doge", "gpt_neo", "gptj", "mpt", "xglm"),
    *("convbert", "deberta-v2", "mpnet", "roformer"),
)
"""Those that read texts by themselves; all others run side by side."""
