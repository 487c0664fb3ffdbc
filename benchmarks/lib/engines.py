"""The engines of the GPU table behind one face: quire in this process, and vLLM where it is installed.

Both take the same prompts and make the same number of tokens, greedy and past the end of the text.
"""

import gc
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from quire.messages.params import SamplingParams

CONTEXT = 32_768
"""Enough for the longest workload, and no more: it bounds what an engine prepares for."""


class OutOfTimeError(BaseException):
    """The time for a measurement is over: an interrupt, which engines pass on where they would explain an exception."""


class Engine(Protocol):
    """A loaded model."""

    name: str

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        """Complete all prompts."""
        ...

    def stop_at(self, deadline: float) -> None:
        """Let `generate` raise OutOfTimeError once `time.monotonic()` is beyond `deadline`, where that can be done."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...


class Quire:
    """quire, in this process.

    Args:
        folder: of the model; weights are random.
        settings: of the engine, by name.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import torch

        import quire

        self.name = f"quire {quire.__version__} (torch {torch.__version__})"
        given = {"load_format": "dummy", "max_model_len": CONTEXT, "log_level": "warning", **settings}
        self.llm = quire.LLM(str(folder), **given)
        self.rows = self.llm.facts.max_num_seqs
        self._deadline = float("inf")
        # The core is not public; a benchmark that may not overrun has to stop it between two steps.
        self.core: Any = self.llm._running()
        self._turn: Callable[[], Any] = self.core.turn
        self.core.turn = self._timely_turn

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        """Complete all prompts."""
        return self.llm.generate(prompts, sampling_params, use_tqdm)

    def stop_at(self, deadline: float) -> None:
        """See Engine."""
        self._deadline = deadline

    def close(self) -> None:
        """See Engine."""
        self.llm.close()
        del self.core, self._turn
        gc.collect()

    def _timely_turn(self) -> Any:
        if time.monotonic() > self._deadline:
            raise OutOfTimeError
        return self._turn()


class VLLM:
    """vLLM, in this process, with its defaults. Cannot be stopped half-way.

    Args:
        folder: of the model; weights are random.
        settings: of quire; those that vLLM knows by the same name are passed on.
    """

    SHARED = ("kv_cache_dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import vllm  # type: ignore[import-not-found, unused-ignore]

        self.name = f"vllm {importlib.metadata.version('vllm')}"
        given = {name: settings[name] for name in self.SHARED if name in settings}
        self.llm: Any = vllm.LLM(
            str(folder), load_format="dummy", max_model_len=CONTEXT, skip_tokenizer_init=True, **given
        )
        self._params: Callable[..., Any] = vllm.SamplingParams

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        """Complete all prompts."""
        params = [
            self._params(temperature=0.0, ignore_eos=True, max_tokens=p.max_tokens, detokenize=False)
            for p in sampling_params
        ]
        found: list[Any] = self.llm.generate(list(prompts), params, use_tqdm=use_tqdm)
        return found

    def stop_at(self, deadline: float) -> None:
        """See Engine."""

    def close(self) -> None:
        """See Engine."""
        del self.llm
        gc.collect()


ENGINES: dict[str, Callable[[Path, Mapping[str, Any]], Engine]] = {"quire": Quire, "vllm": VLLM}
