"""Facts of a model and of devices, for tests of the configuration."""

from typing import Any

import msgspec

from quire.checkpoint.facts import ModelFacts
from quire.config.spec import PlatformFacts

CPU = PlatformFacts(
    name="cpu",
    device="cpu",
    device_name="a CPU",
    arch="avx2",
    total_bytes=8 << 30,
    providers=[],
    refused={},
    dtypes=["float32", "bfloat16"],
    page_size=16,
)
GPU = msgspec.structs.replace(
    CPU, name="cuda", device="cuda:0", device_name="a GPU", dtypes=["bfloat16", "float16", "float32"], page_size=64
)


def model(**changes: Any) -> ModelFacts:
    """Facts of a small model made for 2,048 tokens in bfloat16."""
    facts = ModelFacts(
        name="small",
        path="/nowhere",
        config={},
        model_type="llama",
        dtype="bfloat16",
        context_len=2048,
        vocab_size=256,
        eos_token_ids=[1],
        generation_config={},
        chat_template=None,
    )
    return msgspec.structs.replace(facts, **changes)
