"""`Limits`: the numbers that the scheduler must keep to. Made by `build.make` from the resolved spec."""

import msgspec

from quire.config.fields import Policy


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler is made with, besides the layout of the pages.

    Attributes:
        max_num_seqs: sequences that run at once; also the number of rows.
        max_num_batched_tokens: tokens per step.
        max_preemptions: after so many a sequence is pinned and runs to its end.
        watermark: share of pages kept free when a sequence is admitted beside others.
        policy: name in `order.ORDERS`.
        prefix_caching: whether requests find each other's pages.
        whole: whether a step computes all tokens of a sequence, or none.
        chain: whether the device may feed its own sample into the next plan (not across pipeline stages).
        look_past: waiting sequences that are tried, per plan, after one that does not fit.
        max_skipped: how often a waiting sequence may be overtaken because it did not fit; then it blocks the others.
        checkpoint_tokens: recurrent state is kept every so many tokens, and at the ends of prompts and turns.
        itl_target_s: seconds that a step may take while sequences stream: prompts get no more tokens than that allows.
        recorded_tokens: of prompts, in the largest step that ranks have recorded; 0 where they record none.
        shared_rows, shared_tokens: ranks are told of so many rows that begin with so many tokens alike; reading fewer
            once for all costs more than it saves.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_preemptions: int = 8
    watermark: float = 0.01
    policy: Policy = "fcfs"
    prefix_caching: bool = True
    whole: bool = False
    chain: bool = True
    look_past: int = 4
    max_skipped: int = 64
    checkpoint_tokens: int = 2048
    itl_target_s: float | None = None
    recorded_tokens: int = 0
    shared_rows: int = 4
    shared_tokens: int = 256
