"""What `LLM` does with models that give vectors and scores instead of text, on vLLM's names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from quire.base.errors import EngineError
from quire.engine.front import FrontEnd, Prompt, as_list
from quire.messages.outputs import RequestOutput
from quire.messages.pooling import PoolingParams, PoolingTask
from quire.messages.pooling_outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    compare,
    data_of,
    paired,
    scoring_task,
    sided,
    values_of,
)
from quire.messages.prompts import PairPrompt
from quire.messages.wire import EngineFacts

T = TypeVar("T")


class PoolingCalls(ABC):
    """The calls; `LLM` brings the engine."""

    _front: FrontEnd

    @property
    @abstractmethod
    def facts(self) -> EngineFacts:
        """Limits and tasks of the engine."""

    @abstractmethod
    def _pool(
        self, prompts: Sequence[Prompt | PairPrompt], params: PoolingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        """Pool all of these. Raises RequestError if one is refused; nothing has run then."""

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        prompt_name: str | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """A vector of each text.

        Args:
            prompts: as for `generate`.
            use_tqdm: show a progress bar.
            pooling_params: dimensions and whether to normalize.
            prompt_name: which of the checkpoint's prompts to put before each text ("query", "document", ...).

        Raises:
            RequestError: the model gives no vectors, or a text or parameter is wrong.
        """
        named = [self._front.prompted(prompt, prompt_name) for prompt in as_list(prompts)]
        outputs = self._pool(named, _with_task(pooling_params, "embed"), use_tqdm)
        return _wrapped(EmbeddingRequestOutput, outputs, lambda output: EmbeddingOutput(values_of(output).tolist()))

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probability of each label for each text; raw scores with `use_activation=False`."""
        outputs = self._pool(as_list(prompts), _with_task(pooling_params, "classify"), use_tqdm)
        return _wrapped(
            ClassificationRequestOutput, outputs, lambda output: ClassificationOutput(values_of(output).tolist())
        )

    def reward(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
    ) -> list[PoolingRequestOutput]:
        """The raw scores of a reward model for each text; of some, for each of its tokens."""
        params = msgspec.structs.replace(pooling_params or PoolingParams(), use_activation=False)
        task: PoolingTask = "token_classify" if "token_classify" in self.facts.tasks else "classify"
        return self.encode(prompts, params, pooling_task=task, use_tqdm=use_tqdm)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        pooling_task: PoolingTask | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """What a task makes of each text; by default the first that the model serves."""
        params = pooling_params or PoolingParams()
        task = pooling_task or params.task
        if task is None and self.facts.pooler is not None:
            task = self.facts.pooler.tasks[0]  # type: ignore[assignment]
        outputs = self._pool(as_list(prompts), msgspec.structs.replace(params, task=task), use_tqdm)
        return _wrapped(PoolingRequestOutput, outputs, lambda output: PoolingOutput(data_of(output, task)))

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: one with each of the others, or pair by pair.

        A cross-encoder reads both texts of a pair at once; of other models the vectors are compared, by their cosine or
        token by token.
        """
        pairs = paired(data_1, data_2)
        pooler = self.facts.pooler
        if pooler is None or pooler.head != "none":
            params = _with_task(pooling_params, "score")
            outputs = self._pool([self._front.pair(*pair) for pair in pairs], params, use_tqdm)
            scores = [values_of(output)[0] for output in outputs]
            ids = [output.prompt_token_ids for output in outputs]
        else:
            sides = sided(pooler, pairs)
            texts = list(dict.fromkeys(side for pair in sides for side in pair))
            params = _with_task(pooling_params, scoring_task(pooler))
            prompts = self._front.sides(texts, params, self.facts)
            found = dict(zip(texts, self._pool(prompts, params, use_tqdm), strict=True))
            scores = [compare(pooler, found[a], found[b]) for a, b in sides]
            ids = [found[a].prompt_token_ids + found[b].prompt_token_ids for a, b in sides]
        return [
            ScoringRequestOutput(request_id=str(i), prompt_token_ids=ids[i], outputs=ScoringOutput(score))
            for i, score in enumerate(scores)
        ]


def checked(output: RequestOutput) -> RequestOutput:
    """`output`, unless the engine failed on it. Raises EngineError."""
    if output.error is not None:
        raise EngineError(output.error)
    return output


def _wrapped(
    kind: Callable[..., T], outputs: Sequence[RequestOutput], made: Callable[[RequestOutput], object]
) -> list[T]:
    """What users get: a `kind` of each output, around what is `made` of it."""
    return [
        kind(
            request_id=output.request_id,
            prompt_token_ids=output.prompt_token_ids,
            num_cached_tokens=output.num_cached_tokens,
            outputs=made(output),
        )
        for output in outputs
    ]


def _with_task(params: PoolingParams | None, task: PoolingTask) -> PoolingParams:
    return msgspec.structs.replace(params or PoolingParams(), task=task)
