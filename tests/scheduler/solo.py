"""What a sequence must say, computed without pages, scheduler or company."""

from dataclasses import dataclass, field

from quire.messages.request import Request
from quire.messages.state import Retention
from quire.scheduler.intake import sibling_seed
from tests.scheduler.device import banned, visible
from tests.scheduler.hashing import logprob, next_token, state_of


@dataclass
class Said:
    """Everything that reaches the client of one sequence."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    error: str | None = None


def run_solo(request: Request, index: int, rules: list[Retention], vocab: int, max_model_len: int) -> Said:
    """One sequence of a request on its own. The request must bring a seed."""
    params, tokens = request.params, list(request.token_ids)
    seed = sibling_seed(params.seed, index)
    eos = [] if params.ignore_eos else request.eos_token_ids
    states: list[int] = []
    said = Said()
    while said.finish_reason is None:
        for position in range(len(states), len(tokens)):
            past = [states[at] for rule in rules for at in visible(rule, position)]
            states.append(state_of(tokens[position], position, past))
        mask = banned(len(said.tokens), params, eos)
        token = next_token(states[-1], seed, vocab, mask)
        tokens.append(token)
        said.tokens.append(token)
        if params.logprobs is not None:
            said.logprobs.append(logprob(states[-1], token))
        if token in eos:
            said.finish_reason = "stop"
        elif token in (params.stop_token_ids or ()):
            said.finish_reason, said.stop_reason = "stop", token
        elif len(said.tokens) == params.max_tokens or len(tokens) == max_model_len:
            said.finish_reason = "length"
    if params.prompt_logprobs is not None and index == 0:
        prompt = request.token_ids
        said.prompt_logprobs = [logprob(states[at], prompt[at + 1]) for at in range(len(prompt) - 1)]
    return said
