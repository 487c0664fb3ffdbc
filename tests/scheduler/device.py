"""A fake rank in plain Python: it knows only what plans tell it, and reads its state back through its pages.

Page memory is a dict (group, page, offset) -> state. Rows are mirrored from plans. Every rule of the plan's protocol is
asserted here, because a real rank would silently compute nonsense.
"""

from dataclasses import dataclass, field

from quire.messages.plan import Grant, NewRow, SharedPages, StepPlan, StepResult, TokenLogprobs
from quire.messages.state import Layout, Retention
from tests.scheduler.hashing import Poison, State, logprob, next_token, state_of


def visible(rule: Retention, position: int) -> list[int]:
    """Past tokens that the token at `position` reads."""
    first = rule.first_needed(position)
    return [*range(min(rule.sink, first)), *range(first, position)]


def banned(generated: int, params, eos_token_ids: list[int]) -> frozenset[int]:
    """Tokens that the sampler masks: what would end the text among the first min_tokens."""
    if generated >= params.min_tokens:
        return frozenset()
    return frozenset(eos_token_ids) | frozenset(params.stop_token_ids or ())


@dataclass
class Row:
    """What the rank keeps of a sequence."""

    new: NewRow
    tokens: list[int]
    computed: int
    tables: list[list[int]] = field(default_factory=list)


class Device:
    """Runs plans in the order in which they come."""

    def __init__(self, layout: Layout, vocab: int) -> None:
        self.groups = layout.groups
        self.vocab = vocab
        self.memory: dict[tuple[int, int, int], State] = {}
        self.rows: dict[int, Row] = {}
        self.steps = 0
        self.shared: list[list[SharedPages]] = [[] for _ in layout.groups]
        self.blame: dict[tuple[int, int], Poison] = {}  # (step, row) that was reported as bad: who caused it

    def run(self, plan: StepPlan, poisoned: dict[int, Poison]) -> StepResult:
        """Compute a plan. Rows in `poisoned` compute nothing finite in this step."""
        self.steps += 1
        assert plan.step == self.steps, "plans out of order"
        for row in plan.released:
            del self.rows[row]
        for new in plan.new:
            self._begin(new)
        if plan.shared is not None:
            self.shared = plan.shared
        self._check_shared()
        assert len({grant.row for grant in plan.grants}) == len(plan.grants), "a row is granted twice"
        result = StepResult(plan.step, [], [], [], {}, {}, {})
        for grant in plan.grants:
            self._append_pages(grant)
        self._check_states(plan)
        for grant in plan.grants:
            self._compute(grant, result, poisoned.get(grant.row))
        return result

    def _check_states(self, plan: StepPlan) -> None:
        """Rows run side by side: no page of recurrent state is written while another row begins with it."""
        for number, group in enumerate(self.groups):
            if group.spec.recurrent:
                rows = [(self.rows[grant.row], grant) for grant in plan.grants]
                ends = [row.tables[number][(row.computed + g.tokens - 1) // group.page_size] for row, g in rows]
                assert len(set(ends)) == len(ends), "two rows leave their state in one page"
                for (row, _), end in zip(rows, ends, strict=True):
                    begin = row.tables[number][(row.computed - 1) // group.page_size] if row.computed else 0
                    assert begin == end or begin not in ends, "a state is overwritten while another row reads it"

    def _begin(self, new: NewRow) -> None:
        assert new.row not in self.rows, "a row is reused before it was released"
        assert 0 <= new.computed < len(new.token_ids), "nothing is left to compute"
        for group, pages in zip(self.groups, new.pages, strict=True):
            assert len(pages) * group.page_size == new.computed, "shared pages are not what is computed"
        self.rows[new.row] = Row(new, list(new.token_ids), new.computed, [list(pages) for pages in new.pages])

    def _check_shared(self) -> None:
        """Rows that are said to begin alike do, with pages that earlier steps have filled."""
        for number, groups in enumerate(self.shared):
            rows = [row for group in groups for row in group.rows]
            assert len(set(rows)) == len(rows), "a row begins like two groups"
            for group in groups:
                members = [self.rows[row] for row in group.rows]
                assert len({tuple(row.tables[number][: group.pages]) for row in members}) == 1, "rows begin otherwise"
                assert all(row.computed >= group.pages * self.groups[number].page_size for row in members)

    def _append_pages(self, grant: Grant) -> None:
        row = self.rows[grant.row]
        for table, pages, group in zip(row.tables, grant.new_pages, self.groups, strict=True):
            # Positions that a step passes over get no page of recurrent state.
            given = pages[-1:] if group.spec.recurrent else pages
            assert all(0 < page < group.pages for page in given) and not any(pages[: len(pages) - len(given)])
            table += pages

    def _compute(self, grant: Grant, result: StepResult, poison: Poison | None) -> None:
        row = self.rows[grant.row]
        start, end = row.computed, row.computed + grant.tokens
        assert grant.tokens > 0
        assert end <= len(row.tokens), "a token is computed before it is known"
        assert grant.samples == (end == len(row.tokens))
        states = self._states(row, (start, end), poison)
        row.computed = end
        params, prompt = row.new.params, row.new.prompt_len
        if params.prompt_logprobs is not None and start < prompt - 1:
            described = states[: prompt - 1 - start]
            result.prompt_logprobs[grant.row] = [
                _describe(state, row.tokens[at]) for at, state in enumerate(described, start + 1)
            ]
            self._blame(result, grant.row, described)
        if not grant.samples:
            return
        state, token = states[-1], 0
        result.rows.append(grant.row)
        self._blame(result, grant.row, [state])
        if not isinstance(state, Poison):
            mask = banned(len(row.tokens) - prompt, params, row.new.eos_token_ids)
            token = next_token(state, row.new.seed, self.vocab, mask)
            if params.logprobs is not None:
                result.logprobs[grant.row] = _describe(state, token)
        result.tokens.append(token)
        row.tokens.append(token)
        assert len(row.tokens) <= row.new.max_len, "sampled beyond the end"

    def _blame(self, result: StepResult, row: int, states: list[State]) -> None:
        """Report a row whose logits are not finite."""
        for state in states:
            if isinstance(state, Poison) and row not in result.bad:
                result.bad.append(row)
                self.blame[result.step, row] = state

    def _states(self, row: Row, span: tuple[int, int], poison: Poison | None) -> list[State]:
        """The states of these positions. Recurrent ones reach memory at the end of the step only."""
        states: list[State] = []
        for position in range(*span):
            past = []
            for number, group in enumerate(self.groups):
                if group.spec.recurrent and states:
                    past.append(states[-1])
                else:
                    past += [self._read(number, row, at) for at in visible(group.spec.retention, position)]
            states.append(poison or state_of(row.tokens[position], position, past))
            for number, group in enumerate(self.groups):
                if not group.spec.recurrent or position == span[1] - 1:
                    self.memory[self._place(number, row, position)] = states[-1]
        return states

    def _read(self, number: int, row: Row, position: int) -> State:
        return self.memory[self._place(number, row, position)]

    def _place(self, number: int, row: Row, position: int) -> tuple[int, int, int]:
        """Where the state of a position lies. A page of recurrent state has one place."""
        group = self.groups[number]
        page = row.tables[number][position // group.page_size]
        assert page, "page 0 is nobody's"
        return number, page, 0 if group.spec.recurrent else position % group.page_size


def _describe(state: State, token: int) -> TokenLogprobs:
    return TokenLogprobs.of([token], [0.0 if isinstance(state, Poison) else logprob(state, token)], 1)
