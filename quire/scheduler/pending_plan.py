"""`PendingPlan`: the plan being made, and what is remembered of it until its result is in."""

from quire.messages.plan import Grant, NewRow, SharedPages, StepPlan
from quire.scheduler.sequence import Sequence
from quire.scheduler.step_time import size_class


class PendingPlan:
    """Collects grants; afterwards the scheduler's record of a plan in flight.

    Attributes:
        step: number of the plan.
        sampling: sequences that sample, in order of their grants.
        chunks: sequences whose prompt goes on after this step.
        pooled: sequences whose prompt is computed to its end, which is all that they want.
        caught_up: sequences that are not steady: they may fill pages whose tokens are known already.
        tokens: tokens that the plan computes.
        prompt_tokens, prompt_pairs: of those, tokens of prompts, and how many pairs they make with tokens before them.
    """

    __slots__ = (
        *("caught_up", "chunks", "grants", "new", "pooled", "prompt_pairs", "prompt_tokens", "sampling", "step"),
        "tokens",
    )

    def __init__(self, step: int) -> None:
        self.step = step
        self.grants: list[Grant] = []
        self.new: list[NewRow] = []
        self.sampling: list[Sequence] = []
        self.chunks: list[Sequence] = []
        self.pooled: list[Sequence] = []
        self.caught_up: list[Sequence] = []
        self.tokens = 0
        self.prompt_tokens = 0
        self.prompt_pairs = 0.0

    def begin(self, seq: Sequence) -> None:
        """A sequence enters its row, with all that it shares; it has no pages of its own yet."""
        request = seq.request
        fresh = [len(pages) for pages in seq.fresh]
        self.new.append(
            NewRow(
                row=seq.row,
                token_ids=list(seq.tokens),
                prompt_len=seq.prompt_len,
                computed=seq.computed,
                pages=[t.pages[: len(t.pages) - new] for t, new in zip(seq.tables, fresh, strict=True)],
                params=seq.params,
                seed=seq.seed,
                eos_token_ids=[] if seq.params.ignore_eos else request.eos_token_ids,
                bad_words_ids=request.bad_words_ids,
                max_len=seq.max_len,
                pooling=request.pooling,
            )
        )

    def advance(self, seq: Sequence) -> None:
        """One more token of a sequence for which no resource needs to be asked."""
        self.grants.append(seq.steady_grant)
        self.sampling.append(seq)
        seq.computed += 1
        seq.expected += 1
        seq.in_flight += 1

    def grant(self, seq: Sequence, tokens: int) -> None:
        """`tokens` more tokens of `seq`; counts them and the sample that the last of them brings."""
        ends = tokens == seq.pending
        samples = ends and not seq.pooled
        self.grants.append(Grant(seq.row, tokens, samples, seq.fresh))
        (self.sampling if samples else self.pooled if ends else self.chunks).append(seq)
        self.caught_up.append(seq)
        if tokens > 1:
            self.prompt_tokens += tokens
            self.prompt_pairs += tokens * (seq.computed + tokens / 2)
        seq.computed += tokens
        seq.expected += samples
        seq.in_flight += 1

    @property
    def size(self) -> tuple[int, int]:
        """What the step takes depends on it: classes of tokens of prompts, and of sequences."""
        return size_class(self.prompt_tokens), size_class(len(self.grants))

    def plan(self, released: list[int], shared: list[list[SharedPages]] | None) -> StepPlan:
        """The message for the ranks."""
        return StepPlan(self.step, released, self.new, self.grants, shared)
