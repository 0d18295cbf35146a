"""The ratios as an SVG: a bar for each, with its target. `python -m bench.picture results.json` prints it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .recorded import Recorded, read
from .results import FIGURES, Verdict, verdict_of
from .table import name_of, number

LEFT, RIGHT, WIDTH = 470, 60, 940  # pixels: the names, the numbers, all of it
TOP, LINE, GAP = 62, 18, 10
LEAST, MOST = 0.03, 10.0  # of the scale
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
COLOURS = {True: "#2a7f62", False: "#c0392b", None: "#8a94a0"}
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


@dataclass(frozen=True, slots=True)
class Bar:
    """`value`: less is better, and below 1 the product is ahead; so is `limit`, the target."""

    work: str
    name: str
    value: float
    limit: float | None
    is_met: bool | None


def bars_of(recorded: Recorded) -> list[Bar]:
    found = []
    for work in recorded.works:
        verdicts = [verdict_of(ratio, recorded.runs_of(work)) for ratio in work.ratios]
        found += [_bar(work.name, verdict) for verdict in verdicts if verdict]
    return found


def _bar(work: str, verdict: Verdict) -> Bar:
    ratio, value, limit = verdict.ratio, verdict.spread.median, verdict.ratio.limit
    if not ratio.at_least:
        return Bar(work, name_of(ratio), value, limit, verdict.is_met)
    # Turned over, so that all bars read alike: what is a rate becomes a time.
    name = name_of(ratio).replace(FIGURES[ratio.figure], f"1 / {FIGURES[ratio.figure]}")
    return Bar(work, name, 1 / value, 1 / limit if limit else None, verdict.is_met)


def _x(value: float) -> float:
    share = math.log(min(MOST, max(LEAST, value)) / LEAST) / math.log(MOST / LEAST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(text)}</text>'


def draw(bars: Iterable[Bar]) -> str:
    """The picture, as text."""
    lines: list[str] = []
    y, work = float(TOP), ""
    for bar in bars:
        if bar.work != work:
            y += GAP * bool(work)
            work = bar.work
            lines.append(_text(10, y + 13, work, 'font-weight="bold"'))
        lines += _drawn(bar, y)
        y += LINE
    height = y + GAP
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" {FONT} fill="#222">',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>',
        _text(10, 20, "eventmux divided by others: less is better, left of 1 eventmux is ahead", 'font-size="14"'),
        _text(
            10, 38, "green: target met; red: missed; grey: no target. The black stroke is the target.", 'fill="#555"'
        ),
    ]
    for tick in TICKS:
        x, colour = _x(tick), "#222" if tick == 1 else "#ddd"
        frame.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 6}" y2="{height - GAP:.0f}" stroke="{colour}"/>')
        frame.append(_text(x, TOP - 10, f"{tick:g}", 'text-anchor="middle" fill="#555"'))
    return "\n".join([*frame, *lines, "</svg>", ""])


def _drawn(bar: Bar, y: float) -> list[str]:
    ends = sorted((_x(1), _x(bar.value)))
    box = f'x="{ends[0]:.1f}" y="{y + 3:.0f}" width="{max(1.0, ends[1] - ends[0]):.1f}" height="{LINE - 6}"'
    lines = [
        _text(LEFT - 10, y + 13, bar.name, 'text-anchor="end"'),
        f'<rect {box} fill="{COLOURS[bar.is_met]}"/>',
        _text(WIDTH - RIGHT + 8, y + 13, number(bar.value)),
    ]
    if bar.limit is not None:
        x = _x(bar.limit)
        lines.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.0f}" y2="{y + LINE:.0f}" stroke="#000" stroke-width="2"/>'
        )
    return lines


def picture(recorded: Recorded) -> str:
    return draw(bars_of(recorded))


if __name__ == "__main__":
    print(picture(read(Path(sys.argv[1]))), end="")
