"""A sampler with a history, as the runner has them, and the exact distribution that it must draw from."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from quire.messages.params import SamplingParams
from quire.messages.plan import NewRow, TokenLogprobs
from quire.ops.registry import load_providers
from quire.sampling.kernels import choose_kernels
from quire.sampling.sampler import Sampler
from quire.structured.store import GrammarStore

CPU = torch.device("cpu")


class Rig:
    """Rows, their history, and a sampler; tokens are appended by `step`, as the runner does."""

    def __init__(
        self,
        vocab: int,
        rows: int = 8,
        max_len: int = 64,
        device: torch.device = CPU,
        providers: tuple[str, ...] = ("torch_native",),
        grammars: GrammarStore | None = None,
    ) -> None:
        self.device = device
        load_providers(providers)
        self.sampler = Sampler(rows, vocab, max_len, device, grammars, choose_kernels(providers))
        self.history = torch.zeros(rows, max_len, dtype=torch.int32, device=device)
        self.known = torch.zeros(rows, dtype=torch.int32, device=device)

    def begin(
        self,
        row: int,
        params: SamplingParams,
        *,
        prompt: tuple[int, ...] = (1, 2, 3),
        output: tuple[int, ...] = (),
        seed: int = 0,
        eos: tuple[int, ...] = (),
        bad_words: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        """A sequence enters `row`."""
        tokens = [*prompt, *output]
        words = [list(w) for w in bad_words]
        self.sampler.begin(NewRow(row, tokens, len(prompt), 0, [], params, seed, list(eos), words, 64))
        self.history[row].zero_()
        self.history[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.known[row] = len(tokens)

    def sample(
        self, logits: Tensor, rows: list[int]
    ) -> tuple[list[int], list[int], dict[int, TokenLogprobs], dict[int, str]]:
        """Sample without appending."""
        at = torch.tensor(rows, device=self.device)
        return self.sampler.sample(logits, rows, at, self.history, self.known).to_host()

    def step(self, logits: Tensor, rows: list[int]) -> list[int]:
        """Sample, append and return the tokens; nothing may be bad."""
        at = torch.tensor(rows, device=self.device)
        samples = self.sampler.sample(logits, rows, at, self.history, self.known)
        self.history[at, self.known[at].long()] = samples.tokens.int()
        self.known[at] += 1
        tokens, bad, _, errors = samples.to_host()
        assert not bad
        assert not errors
        return tokens


@contextmanager
def no_waiting() -> Iterator[None]:
    """What waits for the GPU is an error; no test after this one sees the mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def exact(
    logits: Tensor, params: SamplingParams, prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = ()
) -> np.ndarray:
    """The distribution of the next token, (vocab,) float64: the definition, one token at a time and in plain numpy."""
    x = logits.double().numpy().copy()
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    for token in {*prompt, *output}:
        x[token] = x[token] / params.repetition_penalty if x[token] > 0 else x[token] * params.repetition_penalty
    for token in output:
        x[token] -= params.frequency_penalty
    for token in set(output):
        x[token] -= params.presence_penalty
    if params.allowed_token_ids is not None:
        x[[i for i in range(len(x)) if i not in params.allowed_token_ids]] = -np.inf
    p = _softmax(x / params.temperature)
    p = np.where(p >= params.min_p * p.max(), p, 0)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if params.top_k > 0:
        p[order[params.top_k :]] = 0
    p /= p.sum()
    reached = 0.0
    for token in order:
        if reached >= params.top_p:
            p[token] = 0
        reached += p[token]
    return p / p.sum()


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max())
    return p / p.sum()


def assert_drawn_from(tokens: list[int], p: np.ndarray) -> None:
    """Chi-square test of draws against the exact distribution; tokens of probability 0 must not occur at all."""
    counts = np.bincount(tokens, minlength=len(p))
    assert len(counts) == len(p)
    assert counts[p == 0].sum() == 0
    expected = p * len(tokens)
    often = expected >= 5
    observed = [*counts[often], counts[~often].sum()]
    wanted = [*expected[often], expected[~often].sum()]
    if wanted[-1] < 5:  # too rare for a cell of its own
        observed[-2:] = [sum(observed[-2:])]
        wanted[-2:] = [sum(wanted[-2:])]
    if len(wanted) > 1:
        assert stats.chisquare(observed, wanted).pvalue > 1e-6
