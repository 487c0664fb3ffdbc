"""quire: an LLM inference and serving engine.

This module is the public Python API. Names are imported on first use, so `import quire` costs a few milliseconds,
touches no device and imports no torch.
"""

from typing import TYPE_CHECKING

from quire.base.registry import lazy_attributes
from quire.version import __version__

if TYPE_CHECKING:
    from quire.engine.async_llm import AsyncLLM
    from quire.engine.llm import LLM
    from quire.messages.outputs import CompletionOutput, Logprob, RequestOutput
    from quire.messages.params import SamplingParams

__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams", "__version__"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "LLM": "quire.engine.llm:LLM",
        "AsyncLLM": "quire.engine.async_llm:AsyncLLM",
        "SamplingParams": "quire.messages.params:SamplingParams",
        "RequestOutput": "quire.messages.outputs:RequestOutput",
        "CompletionOutput": "quire.messages.outputs:CompletionOutput",
        "Logprob": "quire.messages.outputs:Logprob",
    },
)
