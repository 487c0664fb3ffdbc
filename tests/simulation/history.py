"""What clients have seen, and the checker that says whether it may be (N1 to N4 and N7 of docs/reliability.md)."""

from dataclasses import dataclass, field
from functools import cache
from math import inf

from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from tests.scheduler.engine import EOS, VOCAB
from tests.scheduler.solo import Said, run_solo
from tests.simulation.core import CONTEXT, model, rules
from tests.simulation.scenario import HARMFUL, POISONOUS, SPOILED, Ask, Scenario

SERVED = "served"
"""The only outcome that is a clean end. Others: left (by the client itself), aborted, broken (its front end has died),
unavailable (503 before anything was sent, or an error event afterwards), failed (500), or the code of a refusal."""


@dataclass
class Seen:
    """What one client has seen of its request.

    Attributes:
        outcome: how it ended; None while it has not.
        cores: by which engines it was begun, and how many tokens had been read by then.
    """

    ask: Ask
    outcome: str | None = None
    ended_at: float = inf
    error: str = ""
    retry_after_s: int | None = None
    tokens: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    cores: list[tuple[int, int]] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Tokens read."""
        return sum(map(len, self.tokens.values()))

    def saw(self, output: RequestOutput) -> None:
        """Read an output."""
        for completion in output.outputs:
            index = completion.index
            assert index not in self.ends, f"{self.ask.id}: news of {index} after its end"
            self.tokens.setdefault(index, []).extend(completion.token_ids)
            self.text[index] = self.text.get(index, "") + completion.text
            if completion.finish_reason is not None:
                self.ends[index] = completion.finish_reason
        self.error = self.error or output.error or ""


def params(ask: Ask) -> SamplingParams:
    """How the tokens of a request are chosen."""
    return SamplingParams(
        n=ask.n,
        seed=ask.seed,
        max_tokens=ask.max_tokens,
        min_tokens=min(ask.min_tokens, ask.max_tokens),
        ignore_eos=ask.ignore_eos,
        stop=list(ask.stop) or None,
        stop_token_ids=list(ask.stop_token_ids) or None,
        prompt_logprobs=ask.prompt_logprobs,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )


@cache
def solo(scenario: Scenario, ask: Ask, index: int) -> tuple[Said, str]:
    """What sequence `index` says without company, and without faults; the text with all that a stop string leaves."""
    request = Request(id=ask.id, token_ids=list(ask.prompt), params=params(ask), eos_token_ids=[EOS])
    said = run_solo(request, index, rules(scenario), VOCAB, CONTEXT)
    text = "".join(map(piece, said.tokens))
    cut = _first_stop(ask, said.tokens)
    if cut is not None:
        return Said(said.tokens[: cut[0]], finish_reason="stop"), text[: cut[1]]
    return said, text


def _first_stop(ask: Ask, tokens: list[int]) -> tuple[int, int] | None:
    """Tokens and characters up to the end of the stop string that starts first, found in the whole text at once."""
    text, owner = "", []
    for number, token in enumerate(tokens, 1):
        text += piece(token)
        owner += [number] * len(piece(token))
    found = [
        (start, start + len(stop))
        for stop in ask.stop
        for start in range(len(text))
        if text.startswith(stop, start) and owner[start + len(stop) - 1] > ask.min_tokens
    ]
    return (owner[min(found)[1] - 1], min(found)[1]) if found else None


@cache
def piece(token: int) -> str:
    """The text of a token; all that the toy says are whole characters."""
    return tokenizer().decode([token], skip_special_tokens=False)


@cache
def tokenizer():
    """The toy's."""
    from quire.tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(model().path)


def explained(seen: Seen) -> bool:
    """Whether a failure is what the request itself has asked for."""
    harm = seen.ask.prompt[0]
    return harm in (HARMFUL if seen.outcome == "failed" else (SPOILED, POISONOUS))


def check(scenario: Scenario, seen: Seen, excused: bool) -> None:
    """Assert what holds for one request whatever has happened.

    Args:
        scenario: the life.
        seen: what its client has seen.
        excused: whether a fault that is not its own may have been taken for its own.
    """
    ask, outcome = seen.ask, seen.outcome
    assert outcome is not None, f"N1: {ask.id} has no outcome"
    for index in seen.tokens:
        said, text = solo(scenario, ask, index)
        assert seen.tokens[index] == said.tokens[: len(seen.tokens[index])], f"N3: {ask.id} has read other tokens"
        assert text.startswith(seen.text[index]), f"N3: {ask.id} has read other text"
        if seen.ends.get(index) in ("stop", "length"):
            assert (seen.tokens[index], seen.text[index]) == (said.tokens, text), f"N2: {ask.id} ended too early"
            assert seen.ends[index] == said.finish_reason, f"N4: {ask.id} ended for another reason"
    if outcome == SERVED:
        assert len(seen.ends) == ask.n, f"N2: {ask.id} ended before its sequences"
        reasons = {reason for reason in seen.ends.values() if reason not in ("stop", "length")}
        assert not reasons or explained(seen) or excused, f"{ask.id} ended as {reasons}: {seen.error}"
    for number, (_, read) in enumerate(seen.cores):
        assert not number or not read, f"N7: {ask.id} was begun again after {read} tokens had been read"
    blamed = outcome in ("failed", "poison_request")
    assert not blamed or ask.prompt[0] in HARMFUL or excused, f"{ask.id} was blamed, and is innocent"
    assert outcome != "unavailable" or seen.retry_after_s is not None
