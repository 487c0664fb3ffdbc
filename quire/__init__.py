"""quire: an LLM inference and serving engine.

This module is the public Python API. Names are imported on first use, so `import quire` costs a few milliseconds,
touches no device and imports no torch.
"""

from typing import TYPE_CHECKING

from quire.base.registry import lazy_attributes
from quire.version import __version__

if TYPE_CHECKING:
    from quire.base.errors import (
        CheckpointError,
        ConfigError,
        EngineDeadError,
        EngineError,
        PlatformError,
        QuireError,
        RequestError,
    )
    from quire.engine.async_llm import AsyncLLM
    from quire.engine.llm import LLM
    from quire.messages.outputs import CompletionOutput, Logprob, RequestOutput
    from quire.messages.params import RequestOutputKind, SamplingParams
    from quire.messages.pooling import PoolingParams
    from quire.messages.pooling_outputs import (
        ClassificationRequestOutput,
        EmbeddingRequestOutput,
        PoolingRequestOutput,
        ScoringRequestOutput,
    )
    from quire.messages.prompts import TextPrompt, TokensPrompt
    from quire.messages.structured import StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "CheckpointError",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineDeadError",
    "EngineError",
    "Logprob",
    "PlatformError",
    "PoolingParams",
    "PoolingRequestOutput",
    "QuireError",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "LLM": "quire.engine.llm:LLM",
        "AsyncLLM": "quire.engine.async_llm:AsyncLLM",
        "SamplingParams": "quire.messages.params:SamplingParams",
        "RequestOutputKind": "quire.messages.params:RequestOutputKind",
        "PoolingParams": "quire.messages.pooling:PoolingParams",
        "RequestOutput": "quire.messages.outputs:RequestOutput",
        "CompletionOutput": "quire.messages.outputs:CompletionOutput",
        "Logprob": "quire.messages.outputs:Logprob",
        "StructuredOutputsParams": "quire.messages.structured:StructuredOutputsParams",
        "TextPrompt": "quire.messages.prompts:TextPrompt",
        "TokensPrompt": "quire.messages.prompts:TokensPrompt",
        "EmbeddingRequestOutput": "quire.messages.pooling_outputs:EmbeddingRequestOutput",
        "ClassificationRequestOutput": "quire.messages.pooling_outputs:ClassificationRequestOutput",
        "ScoringRequestOutput": "quire.messages.pooling_outputs:ScoringRequestOutput",
        "PoolingRequestOutput": "quire.messages.pooling_outputs:PoolingRequestOutput",
        "QuireError": "quire.base.errors:QuireError",
        "ConfigError": "quire.base.errors:ConfigError",
        "PlatformError": "quire.base.errors:PlatformError",
        "CheckpointError": "quire.base.errors:CheckpointError",
        "RequestError": "quire.base.errors:RequestError",
        "EngineError": "quire.base.errors:EngineError",
        "EngineDeadError": "quire.base.errors:EngineDeadError",
    },
)
