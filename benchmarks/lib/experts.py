"""How many experts a batch of a decode step touches: random weights could send every token to the same few.

The tokens are those that the model itself generates. Graphs cannot be watched, so each sequence is given once more, as
a prompt with its own output, and the experts of its last token are noted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from quire.layers.moe import MoE
from quire.messages.params import SamplingParams

from .engines import Quire

BATCH, OUTPUT_TOKENS = 64, 64
LEAST = 120
"""Distinct experts per layer that a figure must have touched, of 128 and on average, to count."""


def mean_distinct(engine: Quire, prompts: list[list[int]]) -> float:
    """Distinct experts per layer, averaged over layers, that the next step of all `prompts` chooses."""
    outputs = _generate(engine, prompts, OUTPUT_TOKENS)
    longer = [[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)]
    model = engine.core.executor.runner.loaded.model
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    chosen: list[set[int]] = [set() for _ in layers]
    last: list[int] = []
    with _noting(engine, layers, chosen, last):
        _generate(engine, longer, 1)
    return sum(map(len, chosen)) / len(chosen)


def _generate(engine: Quire, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens, detokenize=False)
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = engine.generate(given, [params] * len(prompts), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@contextmanager
def _noting(engine: Quire, layers: list[MoE], chosen: list[set[int]], last: list[int]) -> Iterator[None]:
    """Note the experts of the tokens at `last` of each step, which are each sequence's last known token."""
    executor, step = engine.core.executor, engine.core.executor.step
    kept = [layer._moe for layer in layers]

    def noting_step(plan: Any) -> Any:
        last.clear()
        end = 0
        for grant in plan.grants:
            end += grant.tokens
            if grant.samples:
                last.append(end - 1)
        return step(plan)

    def noting(function: Callable[..., Tensor], top_k: int, found: set[int]) -> Callable[..., Tensor]:
        def run(x: Tensor, logits: Tensor, *rest: Any) -> Tensor:
            ids = torch.topk(logits[last].float(), top_k).indices
            found.update(ids.flatten().tolist())
            return function(x, logits, *rest)

        return run

    executor.step = noting_step
    for layer, function, found in zip(layers, kept, chosen, strict=True):
        layer._moe = noting(function, layer.spec.route.top_k, found)
    try:
        yield
    finally:
        executor.step = step
        for layer, function in zip(layers, kept, strict=True):
            layer._moe = function
