"""A picture of a run as SVG, made by hand so that no plotting library is needed: waits, gaps, and tokens over time."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quire.cli.load.client import Sample
from quire.cli.load.report import gaps, tpot, ttft

WIDTH, HEIGHT, MARGIN = 420, 300, 52
POINTS = 200
COLORS = ("#2563eb", "#c2410c")

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: its title, what the axes show, and a line of points per name."""

    title: str
    across: str
    up: str
    lines: dict[str, Points]


def svg(samples: Sequence[Sample], title: str) -> str:
    """Three diagrams of `samples`: shares of requests by wait, of gaps by length, tokens per second over time."""
    done = [sample for sample in samples if sample.error is None and sample.stamps]
    waits = {"first token": shares([ttft(sample) for sample in done])}
    steps = {
        "gap": shares([gap for sample in done for gap in gaps(sample)]),
        "mean of a request": shares([tpot(sample) for sample in done if sample.output_tokens > 1]),
    }
    panels = [
        Panel("Time to the first token", "ms", "share of requests", waits),
        Panel("Between tokens", "ms", "share", steps),
        Panel("Throughput", "s", "pieces of text per second", {"all requests": pace(done)}),
    ]
    drawn = "".join(f'<g transform="translate({n * WIDTH},30)">{_draw(panel)}</g>' for n, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT + 30}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="20" font-size="15">{html.escape(title)}</text>{drawn}</svg>\n'
    )


def shares(values: Sequence[float]) -> Points:
    """(value, share of values that are at most so large), at most POINTS of them."""
    ordered = sorted(values)
    count = len(ordered)
    picked = sorted({min(count - 1, round(n * (count - 1) / POINTS)) for n in range(POINTS + 1)}) if ordered else []
    return [(ordered[n], (n + 1) / count) for n in picked]


def pace(done: Sequence[Sample]) -> Points:
    """(second, pieces of text in it) from the first request on."""
    if not done:
        return []
    began = min(sample.due for sample in done)
    counts: dict[int, int] = {}
    for sample in done:
        for stamp in sample.stamps:
            counts[int(stamp - began)] = counts.get(int(stamp - began), 0) + 1
    return [(float(second), float(counts.get(second, 0))) for second in range(max(counts) + 1)]


def _draw(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    right = _round_up(max((x for x, _ in points), default=1.0))
    top = _round_up(max((y for _, y in points), default=1.0))
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / right * wide, MARGIN + high - y / top * high

    parts = [
        f'<text x="{MARGIN}" y="{MARGIN - 14}" font-size="13">{panel.title}</text>',
        _axes(panel, right, top, place),
    ]
    for number, (name, line) in enumerate(panel.lines.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        color = COLORS[number % len(COLORS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{WIDTH - MARGIN - 120}" y="{HEIGHT - MARGIN - 12 - 16 * number}" fill="{color}">{name}</text>'
        )
    return "".join(parts)


def _axes(panel: Panel, right: float, top: float, place: Callable[[float, float], tuple[float, float]]) -> str:
    parts = []
    for part in range(5):
        x, bottom = place(right * part / 4, 0)
        left, y = place(0, top * part / 4)
        parts.append(f'<line x1="{left}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{right * part / 4:g}</text>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:g}</text>')
    middle, bottom = place(right / 2, 0)
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle" fill="#6b7280">{panel.across}</text>')
    parts.append(f'<text x="{WIDTH - MARGIN}" y="{MARGIN - 14}" text-anchor="end" fill="#6b7280">{panel.up}</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))
