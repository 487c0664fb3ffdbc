"""From a `Request` to its sequences: what is refused at the door, how long each may become, which noise each gets.

Called by `Scheduler.add` only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.messages.structured import grammar_key
from quire.scheduler.limits import Limits
from quire.scheduler.sequence import Sequence, State

SEED_BITS = 63
"""Seeds are below 2**63, so that a signed 64-bit tensor holds them."""

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, made odd: multiples of it stay far apart and never meet modulo a power of two."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How a request came: when (seconds), in whose turn, and the numbers that its sequences take."""

    time: float
    turn: int
    arrivals: Iterator[int]


def cost_of(request: Request, max_len: int) -> int:
    """Tokens that a request may cost: its prompt once, and what each of its sequences may generate."""
    prompt = len(request.token_ids)
    return prompt + request.params.n * (max_len - prompt)


def sibling_seed(seed: int, index: int) -> int:
    """The seed of sequence `index`: `(seed + index * GOLDEN) mod 2**63`; sequence 0 has the seed itself."""
    return (seed + index * GOLDEN) % (1 << SEED_BITS)


def max_len_of(request: Request, max_model_len: int) -> int:
    """Tokens at which a sequence of this request ends. Raises RequestError when not one token can be generated."""
    prompt = len(request.token_ids)
    if request.pooling is not None and prompt <= max_model_len:
        return prompt
    if prompt >= max_model_len:
        raise RequestError(
            f"the prompt has {prompt} tokens, but the maximum context length is {max_model_len} tokens with at least "
            f"one of them generated; shorten the prompt",
            param="prompt",
            code="context_length_exceeded",
        )
    most = request.params.max_tokens
    return max_model_len if most is None else min(max_model_len, prompt + most)


def make_sequences(request: Request, limits: Limits, max_len: int, seed: int, entry: Entry) -> list[Sequence]:
    """The n sequences of a request, the leader first. Only the leader reports log-probabilities of the prompt."""
    params = request.params
    quiet = without_prompt_logprobs(params)
    grammar = grammar_key(params.structured_outputs)
    eos = frozenset() if params.ignore_eos else frozenset(request.eos_token_ids)
    sequences = [
        Sequence(
            request=request,
            index=index,
            arrival=next(entry.arrivals),
            arrived=entry.time,
            turn=entry.turn,
            params=quiet if index else params,
            seed=sibling_seed(seed, index),
            max_len=max_len,
            stops=eos | frozenset(params.stop_token_ids or ()),
            # A callable reads the tokens on the host: the next plan waits for them.
            chain=limits.chain and not params.logits_processors,
            grammar=grammar,
            pooled=request.pooling is not None,
            tokens=list(request.token_ids),
            state=State.FOLLOWING if index else State.WAITING,
        )
        for index in range(params.n)
    ]
    sequences[0].followers = sequences[1:]
    return sequences


def without_prompt_logprobs(params: SamplingParams) -> SamplingParams:
    """The same parameters for a sequence that owes no log-probabilities of the prompt (any more)."""
    return params if params.prompt_logprobs is None else msgspec.structs.replace(params, prompt_logprobs=None)


def seed_of(request: Request, draw: Callable[[int], int]) -> int:
    """The request's own seed, or a drawn one. `draw(bits)` gives a random integer of so many bits."""
    seed = request.params.seed
    return draw(SEED_BITS) if seed is None else seed % (1 << SEED_BITS)
