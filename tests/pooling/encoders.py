"""Configs of tiny encoders, one for each family."""

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "nomic_bert": {},
    "gte": {},
    "modernbert": {"local_attention": 8},
}
"""Families, and what their configs have beside BASE."""
