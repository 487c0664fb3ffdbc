"""`apply_result`: what a result means for the sequences of its plan.

Appends samples, ends sequences, makes the news for front ends. Two rules of overlap live here: results for a sequence
that has ended are dropped, and what a sequence holds is given back when its last plan in flight is in.
"""

from quire.messages.plan import StepResult
from quire.messages.wire import Delta
from quire.scheduler.ending import NOT_FINITE, ending
from quire.scheduler.intake import without_prompt_logprobs
from quire.scheduler.pending_plan import PendingPlan
from quire.scheduler.roster import Roster
from quire.scheduler.sequence import Sequence, State


def apply_result(roster: Roster, flight: PendingPlan, result: StepResult, last_step: int) -> list[Delta]:
    """Take in the result of `flight`; `last_step` is the newest plan handed over. News in order of the grants."""
    deltas = _fail(roster, flight, result) if result.bad or result.errors else []
    for seq in flight.chunks:
        seq.in_flight -= 1
        if seq.state is State.RUNNING:
            _collect_prompt_logprobs(seq, result)
        else:
            roster.leave(seq)
    samples = dict(zip(result.rows, result.tokens, strict=True))
    running, told = State.RUNNING, result.logprobs
    for seq in flight.sampling:
        seq.in_flight -= 1
        seq.expected -= 1
        if seq.state is not running:
            roster.counters.discarded += 1
            roster.leave(seq)
            continue
        token = samples[seq.row]
        tokens = seq.tokens
        tokens.append(token)
        if seq.plain and len(tokens) < seq.next_check and token not in seq.stops:
            delta = Delta(seq.request.id, seq.index, [token])
            if told and seq.row in told:
                delta.logprobs = [told[seq.row]]
            deltas.append(delta)
        else:
            try:
                roster.register(seq, last_step)
                deltas.append(_news(roster, seq, result))
            except Exception:
                roster.fail(seq)
            if seq.row in result.complete and seq.state is running:
                deltas.append(_complete(roster, seq))
    for seq in flight.pooled:
        seq.in_flight -= 1
        if seq.state is running:
            deltas.append(_pooled(roster, seq, result))
        else:
            roster.leave(seq)
    return deltas


def _pooled(roster: Roster, seq: Sequence, result: StepResult) -> Delta:
    """All that a sequence was for: its vector. A replay has none, and no decision depends on it."""
    vector = result.vectors.get(seq.row, b"")
    roster.counters.finished += 1
    cached = seq.cached_tokens or 0
    roster.end(seq)
    return Delta(seq.id, seq.index, [], finish_reason="stop", cached_tokens=cached, vector=vector)


def _news(roster: Roster, seq: Sequence, result: StepResult) -> Delta:
    """All there is to say of the last token of `seq`; ends the sequence if that token does."""
    delta = Delta(seq.id, seq.index, seq.tokens[-1:])
    if seq.params.logprobs is not None and (logprobs := result.logprobs.get(seq.row)):
        delta.logprobs = [logprobs]
    if seq.generated == 1:
        _first_news(seq, delta, result)
    # This sample has read every page that was filled up to its plan, and it was finite.
    seq.hit = None
    while seq.unconfirmed and seq.unconfirmed[0][0] <= result.step:
        seq.unconfirmed.popleft()
    seq.plain = seq.grammar is None and not seq.unconfirmed
    end = ending(seq)
    if end and not (end[0] == "length" and seq.row in result.complete):
        delta.finish_reason, delta.stop_reason = end
        roster.counters.finished += 1
        roster.end(seq)
    return delta


def _complete(roster: Roster, seq: Sequence) -> Delta:
    """The grammar of `seq` is complete. Told apart from its last token, which is text, unlike a token that ends one."""
    roster.counters.finished += 1
    roster.end(seq)
    return Delta(seq.id, seq.index, [], finish_reason="stop")


def _first_news(seq: Sequence, delta: Delta, result: StepResult) -> None:
    delta.cached_tokens = seq.cached_tokens or 0
    if seq.wants_prompt_logprobs:
        _collect_prompt_logprobs(seq, result)
        delta.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs or [], None
        seq.params = without_prompt_logprobs(seq.params)


def _collect_prompt_logprobs(seq: Sequence, result: StepResult) -> None:
    if seq.wants_prompt_logprobs and (entries := result.prompt_logprobs.get(seq.row)):
        seq.prompt_logprobs = (seq.prompt_logprobs or []) + entries


def _fail(roster: Roster, flight: PendingPlan, result: StepResult) -> list[Delta]:
    """End the sequences whose rows failed; what they computed must reach nobody."""
    sentences = result.errors | dict.fromkeys(result.bad, NOT_FINITE)
    failed = [
        seq
        for seq in (*flight.chunks, *flight.sampling, *flight.pooled)
        if seq.row in sentences and seq.state is State.RUNNING
    ]
    for seq in failed:
        if seq.state is State.RUNNING:
            _withdraw(roster, seq)
    deltas = []
    for seq in failed:
        if seq.state is State.RUNNING:  # else it may have failed only because it shares pages with another one
            deltas.append(Delta(seq.id, seq.index, [], finish_reason="error", error=sentences[seq.row]))
            roster.counters.failed += 1
            roster.end(seq)
    return deltas


def _withdraw(roster: Roster, seq: Sequence) -> None:
    """Take the pages of `seq` out of the index; whoever shares one that nothing has confirmed starts again."""
    invalidated = [seq]
    for each in invalidated:  # grows: what was computed on invalid pages is invalid too
        unconfirmed_pages = roster.pages.withdraw(each)
        invalidated += [
            other for other in roster.running if other not in invalidated and _uses(other, unconfirmed_pages)
        ]
    for other in invalidated[1:]:
        roster.counters.restarted += 1
        roster.return_later(other)


def _uses(seq: Sequence, unconfirmed_pages: set[tuple[int, int]]) -> bool:
    pages = seq.hit.pages if seq.hit else []
    return any((group, page) in unconfirmed_pages for group, numbers in enumerate(pages) for page in numbers)
