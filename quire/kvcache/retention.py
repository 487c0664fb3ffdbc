"""What a retention rule means in pages: which are needed, and how many a sequence holds at most.

The rule itself is `messages.state.Retention.first_needed`. Used by the prefix hit, the page tables, admission and the
layout, so that all four agree.
"""

from quire.messages.state import Retention


def sink_pages(rule: Retention, tokens: int, page_size: int) -> int:
    """Pages at the start that are kept for ever, in a sequence of `tokens`."""
    return -(-min(rule.sink, tokens) // page_size)


def first_page(rule: Retention, computed: int, page_size: int) -> int:
    """The first page, sinks aside, that is needed to compute token `computed` and those after it."""
    return rule.first_needed(computed) // page_size


def needed_pages(rule: Retention, tokens: int, page_size: int) -> list[int]:
    """Indices of the pages that must be present to go on after the first `tokens` tokens (whole pages), in order."""
    sinks = sink_pages(rule, tokens, page_size)
    start = max(sinks, first_page(rule, tokens, page_size))
    return [*range(sinks), *range(start, -(-tokens // page_size))]


def most_held(rule: Retention, tokens: int, page_size: int) -> int:
    """Pages that a sequence of `tokens` tokens holds at most while it advances one token at a time.

    With fewer it can never finish; with so many it can, whatever the alignment of its window.
    """
    whole = -(-tokens // page_size)
    past = rule.chunk - 1 if rule.chunk is not None else None if rule.window is None else rule.window - 1
    if past is None:
        return whole
    return min(whole, sink_pages(rule, tokens, page_size) + -(-past // page_size) + 1)
