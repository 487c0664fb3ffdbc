"""Pages: the memory of past tokens, and the prefixes found in it.

Owns one `CacheGroup` per kind of state. Tables, hash chains and the hit that a sequence starts from are kept on the
sequence; nobody else changes them.
"""

from math import ceil, lcm

from quire.kvcache.group import ENDLESS, CacheGroup
from quire.kvcache.hits import Hit, longest_hit
from quire.kvcache.prefix import HashChain
from quire.kvcache.shared import SharedPrefixes
from quire.kvcache.states import StateGroup
from quire.messages.plan import SharedPages
from quire.messages.state import Layout
from quire.scheduler.limits import Limits
from quire.scheduler.sequence import Sequence, State


class Pages:
    """Grants tokens as long as there are pages for them.

    Attributes:
        step: the hit lengths are multiples of this many tokens.
        state_sizes: tokens per page of the groups that keep recurrent state.
        interval: such state is kept for others at multiples of this many tokens.
        holders: sequences that hold pages.
        promised: keys of the pages that the plan being made fills.
        trees: per group, which sequences begin alike; None where that does not last.
    """

    def __init__(self, layout: Layout, limits: Limits, hash_key: bytes) -> None:
        self.groups = [StateGroup(g) if g.spec.recurrent else CacheGroup(g) for g in layout.groups]
        self.step = lcm(*(group.page_size for group in self.groups))
        self.state_sizes = [group.page_size for group in self.groups if group.recurrent]
        # Whether a text is found again at the ends of steps only.
        self._folds = bool(self.groups) and len(self.state_sizes) == len(self.groups)
        self.interval = -(-limits.checkpoint_tokens // self.step) * self.step
        self.holders: set[Sequence] = set()
        self.promised: set[bytes] = set()
        self.trees = [
            SharedPrefixes[Sequence](limits.shared_rows, -(-limits.shared_tokens // group.page_size))
            if group.keeps_all
            else None
            for group in self.groups
        ]
        self._told: list[list[SharedPages]] = [[] for _ in self.groups]
        self._caching = limits.prefix_caching
        self._reserves = [ceil(limits.watermark * group.pool.usable) for group in self.groups]
        self._key = hash_key

    def new_step(self) -> None:
        """Nothing is promised yet."""
        self.promised.clear()

    def can_ever_hold(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits when it runs alone."""
        return all(group.most_held(tokens) <= group.pool.usable for group in self.groups)

    def prepare(self, seq: Sequence) -> None:
        """Look for the longest cached prefix; `seq.computed` is what need not be computed if it is admitted now."""
        self._open(seq)
        seq.hit = self._find(seq) if self._shares(seq) and not seq.computes_all else None
        seq.computed = seq.hit.tokens if seq.hit else 0
        if self.state_sizes and self._shares(seq):
            ends = {(len(seq.tokens) - 1) // self.step * self.step}
            seq.checkpoints = sorted(ends | {seq.hit.tokens, seq.hit.beyond} if seq.hit else ends)

    def offer(self, seq: Sequence, tokens: int) -> int:
        """As many tokens as there are pages for; to a waiting sequence only if all of it fits, with headroom."""
        if seq.state is State.WAITING and not self._admits(seq):
            return 0
        for number, (group, table) in enumerate(zip(self.groups, seq.tables, strict=True)):
            shared = seq.hit.pages[number] if seq.hit and seq.state is State.WAITING else ()
            tokens = min(tokens, group.reach(table, shared) - seq.computed)
        return max(0, tokens)

    def take(self, seq: Sequence, tokens: int) -> None:
        """Share the pages of the hit if it starts now, and append pages for `tokens` more tokens."""
        if seq.state is State.WAITING:
            self._start(seq)
        end = seq.computed + tokens
        seq.fresh = [group.extend(table, end) for group, table in zip(self.groups, seq.tables, strict=True)]
        if self._shares(seq):
            self._promise(seq, end)

    def release(self, seq: Sequence) -> None:
        """Give all pages back; full ones stay findable until they are needed."""
        if seq not in self.holders:
            return
        for group, table in zip(self.groups, seq.tables, strict=True):
            group.release(table.clear())
        seq.hit = None
        seq.registered = 0
        seq.unconfirmed.clear()
        self.holders.remove(seq)
        if self._shares(seq):
            for tree in self.trees:
                if tree is not None:
                    tree.leave(seq)

    def trim(self, seq: Sequence) -> None:
        """Free what retention no longer needs.

        Earlier plans may still read these pages, but ranks run plans in order: whoever gets one writes to it later.
        """
        for group, table in zip(self.groups, seq.tables, strict=True):
            group.trim(table, seq.computed, seq.checkpoints, self.interval)

    def room(self, seq: Sequence) -> int:
        """Tokens of the sequence that have pages in every group."""
        return min((table.room for table in seq.tables), default=ENDLESS)

    def register(self, seq: Sequence, step: int) -> None:
        """Enter the pages that are full and whose tokens are known. `step`: the last plan that may fill them."""
        full = min(seq.computed, len(seq.tokens))
        if self._shares(seq):
            for number, (group, table) in enumerate(zip(self.groups, seq.tables, strict=True)):
                keys = self._keys(seq, group.page_size)
                first, last = seq.registered // group.page_size, full // group.page_size
                for i in range(first, last):
                    if (page := table.pages[i]) and page not in group.index and group.index.add(keys[i], page):
                        seq.unconfirmed.append((step, number, page))
                tree = self.trees[number]
                if tree is not None and first < last:
                    tree.extend(seq, table.pages[first:last])
        seq.registered = full

    def shared(self) -> list[list[SharedPages]] | None:
        """Per group the rows that begin alike, if that has changed since this was last asked."""
        if not any(tree.changed for tree in self.trees if tree is not None):
            return None
        now = [
            [SharedPages(sorted(seq.row for seq in owners), pages) for pages, owners in tree.sharers()] if tree else []
            for tree in self.trees
        ]
        if now == self._told:
            return None
        self._told = now
        return now

    def next_full(self, seq: Sequence) -> int:
        """Number of tokens at which the next page is full."""
        if not self._shares(seq):
            return ENDLESS
        return min(((seq.registered // g.page_size + 1) * g.page_size for g in self.groups), default=ENDLESS)

    def followers_may_start(self, leader: Sequence) -> bool:
        """Whether all pages of the prompt that siblings can share are in the index."""
        return leader.registered >= (leader.prompt_len - 1) // self.step * self.step

    def withdraw(self, seq: Sequence) -> set[tuple[int, int]]:
        """Nobody may find the pages of this sequence again.

        Returns those, as (group, page), that it has filled or taken over since its last finite sample.
        """
        unconfirmed_pages = {(number, page) for _, number, page in seq.unconfirmed}
        if seq.hit:
            unconfirmed_pages |= {
                (number, page) for number, pages in enumerate(seq.hit.pages) for page in pages if page
            }
        for number, (group, table) in enumerate(zip(self.groups, seq.tables, strict=True)):
            group.withdraw([*table.held(), *(page for owner, page in unconfirmed_pages if owner == number)])
        seq.unconfirmed.clear()
        return unconfirmed_pages

    def disown(self, seq: Sequence) -> None:
        """Nobody may find what it has filled since its last finite sample: it will fill that again."""
        for _, number, page in seq.unconfirmed:
            self.groups[number].withdraw([page])
        seq.unconfirmed.clear()

    def reset(self) -> None:
        """Forget every cached page that no sequence uses."""
        for group in self.groups:
            group.reset()

    def hit_tokens(self, seq: Sequence) -> int:
        """Tokens of the longest cached prefix, without changing anything."""
        self._open(seq)
        if not self._shares(seq) or seq.computes_all:
            return 0
        return self._find(seq).tokens

    def usage(self) -> float:
        """Share of pages that are referenced, in the fullest group."""
        return max((1 - g.pool.available / g.pool.usable for g in self.groups), default=0.0)

    def _open(self, seq: Sequence) -> None:
        if not seq.tables:
            seq.tables = [group.new_table() for group in self.groups]

    def _shares(self, seq: Sequence) -> bool:
        """Whether its pages are in the index: with caching off only siblings share."""
        return self._caching or seq.request.params.n > 1

    def _keys(self, seq: Sequence, page_size: int) -> list[bytes]:
        chain = seq.chains.get(page_size)
        if chain is None:
            request = seq.request
            salt = b"salt " + request.cache_salt.encode() if self._caching else b"request " + request.id.encode()
            chain = seq.chains[page_size] = HashChain(self._key, salt, page_size)
        return chain.extend(seq.tokens)

    def _find(self, seq: Sequence) -> Hit:
        keys = [self._keys(seq, group.page_size) for group in self.groups]
        found = [group.hits(hashes) for group, hashes in zip(self.groups, keys, strict=True)]
        # The last known token is always computed: its logits bring the next one.
        limit = len(seq.tokens) - 1
        tokens = longest_hit(found, limit) if found else 0
        pages = [g.pages_of_hit(hashes, tokens) for g, hashes in zip(self.groups, keys, strict=True)]
        lasting = [hits for g, hits in zip(self.groups, found, strict=True) if not g.recurrent]
        beyond = longest_hit(lasting, limit) // self.step * self.step if self.state_sizes and lasting else tokens
        return Hit(tokens, pages, beyond)

    def _admits(self, seq: Sequence) -> bool:
        """Room for the whole sequence and a watermark, or the pool would thrash; alone it needs no watermark."""
        if self._shares(seq) and not seq.computes_all and self._is_promised(seq):
            return False
        for number, group in enumerate(self.groups):
            shared = [page for page in seq.hit.pages[number] if page] if seq.hit else []
            need = max(0, group.most_held(len(seq.tokens)) - len(shared))
            need += sum(not group.pool.references[page] for page in shared)
            if need + (self._reserves[number] if self.holders else 0) > group.pool.available:
                return False
        return True

    def _is_promised(self, seq: Sequence) -> bool:
        """Whether this plan already computes the next page that it needs: in the next plan that will be a hit."""
        if not self.promised:
            return False
        size = self.groups[0].page_size
        page, last = seq.computed // size, (len(seq.tokens) - 1) // size
        keys = self._keys(seq, size)[page : last if self._folds else min(page + 1, last)]
        return not self.promised.isdisjoint(keys)

    def _promise(self, seq: Sequence, end: int) -> None:
        size = self.groups[0].page_size if self.groups else 0
        if size and min(end, len(seq.tokens)) // size > seq.computed // size:
            keys = self._keys(seq, size)[seq.computed // size : end // size]
            # Where all layers are recurrent, only the state that the step ends with will be found.
            self.promised.update(keys if not self._folds else keys[-1:] if end % size == 0 else [])

    def _start(self, seq: Sequence) -> None:
        self.holders.add(seq)
        if seq.hit is not None:
            for group, table, pages in zip(self.groups, seq.tables, seq.hit.pages, strict=True):
                group.share(pages)
                table.pages = list(pages)
            seq.registered = seq.hit.tokens
        if self._shares(seq):
            for tree, table in zip(self.trees, seq.tables, strict=True):
                if tree is not None:
                    tree.enter(seq, table.pages)
