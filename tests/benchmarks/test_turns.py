"""Who takes turns at the CPU table: everybody once, then ours and the best two, and nobody who has failed."""

import time
from pathlib import Path

import pytest

from benchmarks.lib import turns

pytestmark = pytest.mark.plain


class Answers(turns.Peer):
    """A peer whose figures are its own."""

    def figure(self, label: str, seed: int) -> float:
        del seed
        value = float(self.command[turns.LABELS.index(label)])
        if value < 0:
            raise RuntimeError(f"{self.name} fails")
        return value


def peer(name: str, a: float, start: float) -> Answers:
    return Answers(name, [str(a) if label == "A" else str(start) for label in turns.LABELS], Path("log"))


def test_later_rounds_ask_ours_and_the_two_best() -> None:
    peers = [peer("quire:bf16", 1, 5), peer("a", 30, 30), peer("b", 10, 1), peer("c", 20, 2), peer("d", -1, 3)]
    seen: list[tuple[str, str]] = []
    end = time.monotonic() + 60

    def probe() -> float:
        if len(seen) > 30:
            raise TimeoutError
        return 50.0

    with pytest.raises(TimeoutError):
        turns.measure(peers, [turns.START, "A"], probe, end, lambda one, label: seen.append((one.name, label)))
    names = [one.name for one in peers]
    assert seen[:10] == [(name, label) for label in (turns.START, "A") for name in names]
    # A slow start is not repeated; of A more is better, of a start less.
    later = [("quire:bf16", "E"), ("b", "E"), ("c", "E"), ("quire:bf16", "A"), ("a", "A"), ("c", "A")]
    assert seen[10:22] == later * 2
    assert peers[4].failure == "d fails" and not peers[4].figures["A"]
    assert peers[0].bandwidths["A"] == [50.0] * len(peers[0].figures["A"])


def test_nothing_begins_after_the_deadline() -> None:
    one = peer("quire:bf16", 1, 1)
    turns.measure([one], ["A"], lambda: 1.0, time.monotonic() - 1, lambda *_: None)
    assert not one.figures["A"]
