"""`Completion`: one of a request's n answers while it grows: tokens become text, text is cut at stop strings.

A token and its logprobs are let go together with their text, so whoever reads a stream never sees a token of a stop
string that is still being matched. Where nobody reads before the end and nothing is looked for, text is made from many
tokens at once. Called by `engine.outputs`; knows one sequence and no other.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from quire.engine.stops import StopFinder
from quire.messages.outputs import CompletionOutput, FinishReason, Logprob
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.plan import TokenLogprobs
from quire.messages.wire import Delta
from quire.tokenizer.detokenizer import Detokenizer
from quire.tokenizer.tokenizer import Tokenizer

UNREAD_TOKENS = 16
"""Text that is read at the end only is made for so many tokens at once: cheaper a token, and never much to do."""


def readable(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """Log-probabilities of one position for people: the chosen token first, then the most probable ones in order."""
    (first, *ids), (chosen, *logprobs) = entry.ids, entry.logprobs
    named = {first: Logprob(chosen, entry.rank, tokenizer.token_text(first) if tokenizer else None)}
    for rank, (token_id, logprob) in enumerate(zip(ids, logprobs, strict=True), 1):
        if token_id != first:
            named[token_id] = Logprob(logprob, rank, tokenizer.token_text(token_id) if tokenizer else None)
    return named


@dataclass(frozen=True, slots=True)
class _Token:
    """A token that waits: its id, its logprobs, and where its text ends (characters from the start)."""

    id: int
    entry: TokenLogprobs | None
    end: int


class Completion:
    """One answer.

    Args:
        index: which of the n.
        prompt_ids: the prompt, which the text continues.
        params: the request's.
        tokenizer: None makes no text.

    Attributes:
        tokens: how many tokens count: all that came, or up to the one that completed a stop string.
        finish_reason, stop_reason: as in CompletionOutput.
        changed: whether something was let go since the last `take`.
    """

    def __init__(self, index: int, prompt_ids: list[int], params: SamplingParams, tokenizer: Tokenizer | None) -> None:
        self.index = index
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.changed = False
        self._params = params
        self._tokenizer = tokenizer
        self._text: Detokenizer | None = None
        self._stops: StopFinder | None = None
        if tokenizer is not None:
            spaces = params.spaces_between_special_tokens
            shown = params.shown_token_ids or ()
            self._text = Detokenizer(tokenizer, prompt_ids, params.skip_special_tokens, spaces, shown)
            if params.stop_strings:
                self._stops = StopFinder(params.stop_strings, params.include_stop_str_in_output)
        # Where no stop strings are looked for: tokens whose text is not made yet, and how many of them there may be.
        self._unread: list[int] = []
        self._most_unread = UNREAD_TOKENS if params.output_kind == RequestOutputKind.FINAL_ONLY else 1
        # Where they are: characters so far, and tokens whose text is held.
        self._made = 0
        self._waiting: deque[_Token] = deque()
        self._parts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self._sum = 0.0

    def add(self, delta: Delta) -> bool:
        """Take news from the core. Returns whether a stop string was found that the core does not know of."""
        silent = delta.finish_reason == "stop" and not self._params.include_stop_str_in_output
        if self._stops is None:
            self._add_all(delta, silent)
        else:
            entries: Sequence[TokenLogprobs | None] = delta.logprobs or [None] * len(delta.token_ids)
            last = len(delta.token_ids) - 1
            for position, (token_id, entry) in enumerate(zip(delta.token_ids, entries, strict=True)):
                self._add_token(self._stops, token_id, entry, silent and position == last)
                if self.finish_reason is not None:
                    return delta.finish_reason is None
        if delta.finish_reason is not None:
            self._end(delta.finish_reason, delta.stop_reason)
        return False

    def _add_all(self, delta: Delta, silent: bool) -> None:
        """Tokens that nothing can hold back; `silent` for an eos or stop token at their end, whose text is left out."""
        ids = delta.token_ids
        self.changed |= bool(ids)
        self.tokens += len(ids)
        self._ids += ids
        self._unread += ids[:-1] if silent else ids
        if len(self._unread) >= self._most_unread:
            self._read()
        for entry in delta.logprobs or ():
            self._describe(entry)

    def _read(self) -> None:
        """Make the text of all tokens that have none."""
        unread, self._unread = self._unread, []
        if self._text is not None:
            self._parts.append(self._text.push(unread))

    def _add_token(self, stops: StopFinder, token_id: int, entry: TokenLogprobs | None, silent: bool) -> None:
        """A token whose text may be held back; `silent` for the eos or stop token, whose text is left out."""
        self.tokens += 1
        text = "" if self._text is None or silent else self._text.push([token_id])
        self._made += len(text)
        self._waiting.append(_Token(token_id, entry, self._made))
        self._let_go(stops, self._pass(stops, text))

    def _pass(self, stops: StopFinder, text: str) -> str:
        return stops.push(text, may_stop=self.tokens > self._params.min_tokens)

    def _let_go(self, stops: StopFinder, text: str) -> None:
        """Let text go, and the tokens whose text is out; end at a stop string."""
        if text:
            self._parts.append(text)
            self.changed = True
        if stops.match is not None:
            self._cut(stops.match.end)
            self._finish("stop", stops.match.stop)
            return
        while self._waiting and self._waiting[0].end <= stops.released:
            token = self._waiting.popleft()
            self._release(token.id, token.entry)

    def _cut(self, end: int) -> None:
        """Keep the tokens up to the one that completes the stop string, as vLLM counts; drop the rest."""
        while self._waiting:
            token = self._waiting.popleft()
            self._release(token.id, token.entry)
            if token.end >= end:
                break
        self.tokens -= len(self._waiting)
        self._waiting.clear()

    def _release(self, token_id: int, entry: TokenLogprobs | None) -> None:
        self.changed = True
        self._ids.append(token_id)
        if entry is not None:
            self._describe(entry)

    def _describe(self, entry: TokenLogprobs) -> None:
        if self._logprobs is not None:
            named = readable(entry, self._tokenizer)
            self._logprobs.append(named)
            # The chosen token comes first.
            self._sum += next(iter(named.values())).logprob

    def _end(self, reason: FinishReason, stop_reason: int | None) -> None:
        """The core ended it. After an abort or an error held text stays held: it might have been cut."""
        self._read()
        if reason in ("stop", "length"):
            text = self._text.flush() if self._text else ""
            self._made += len(text)
            if self._stops is None:
                self._parts.append(text)
            else:
                self._let_go(self._stops, self._pass(self._stops, text) + self._stops.flush())
        if self.finish_reason is None:
            self._finish(reason, stop_reason)

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self.finish_reason, self.stop_reason = reason, stop_reason
        self.changed = True

    def fail(self) -> None:
        """End with an error; what is held stays held."""
        if self.finish_reason is None:
            self._finish("error", None)

    def take(self, *, delta: bool) -> CompletionOutput:
        """What was let go: since the last time (`delta`) or since the start."""
        output = CompletionOutput(
            index=self.index,
            text="".join(self._parts),
            token_ids=self._ids if delta else list(self._ids),
            cumulative_logprob=None if self._logprobs is None else self._sum,
            logprobs=self._logprobs if delta or self._logprobs is None else list(self._logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
        self.changed = False
        self._parts = [] if delta else [output.text]
        if delta:
            self._ids = []
            self._logprobs = None if self._logprobs is None else []
        return output
