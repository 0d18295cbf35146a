"""A work's figures and ratios as rows of text, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .results import FIGURES, Run, Spread, Verdict, remark_on, spread_of, values_of, verdict_of
from .work import PRODUCT, TITLES, Ratio, Work


@dataclass(frozen=True, slots=True)
class Row:
    """A server's medians; of the main figure least and most too. `remark`: why there are none, or how to read them."""

    title: str
    cells: list[str]
    remark: str


def number(value: float) -> str:
    """Three digits."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}" if abs(value) >= 0.995 else f"{value:.3f}"


def spread(found: Spread) -> str:
    return f"{number(found.median)} ({number(found.least)}-{number(found.most)})"


def rows_of(work: Work, runs: Sequence[Run]) -> list[Row]:
    return [_row(work, server, runs) for server in TITLES if server in work.servers]


def _row(work: Work, server: str, runs: Sequence[Run]) -> Row:
    spreads = {name: spread_of(list(values_of(runs, server, name).values())) for name in FIGURES}
    medians = {name: found.median for name, found in spreads.items() if found}
    main, *others = work.shows
    first = spreads[main]
    cells = [spread(first) if first else "", *(number(medians[name]) if name in medians else "" for name in others)]
    mine = [run for run in runs if run.server == server]
    errors = [run.error for run in mine if run.error]
    if not mine:
        remark = "not measured: not asked for"
    elif len(errors) == len(mine):
        remark = f"not measured: {errors[0]}"
    else:
        failed = f"{len(errors)} of {len(mine)} rounds failed: {errors[0]}" if errors else ""
        remark = "; ".join(part for part in (remark_on(work, medians), failed) if part)
    return Row(TITLES[server], cells, remark)


def name_of(ratio: Ratio) -> str:
    """What is divided, and by whose or by what."""
    figure = FIGURES[ratio.figure]
    if ratio.server == PRODUCT:
        return f"{figure} against its own {FIGURES[ratio.of]}"
    return f"{figure} against {TITLES[ratio.server]}"


def target_of(ratio: Ratio) -> str:
    if ratio.limit is None:
        return ""
    return f">= {ratio.limit:g}" if ratio.at_least else f"<= {ratio.limit:g}"


def judgement(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not measured"
    return "" if verdict.is_met is None else "met" if verdict.is_met else "missed"


def ratios_of(work: Work, runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """Each ratio's name, its median with least and most, its target, `met` or `missed`."""
    found = []
    for ratio in work.ratios:
        verdict = verdict_of(ratio, runs)
        value = spread(verdict.spread) if verdict else "-"
        found.append((name_of(ratio), value, target_of(ratio), judgement(verdict)))
    return found


def table(work: Work, runs: Sequence[Run]) -> str:
    """For the terminal."""
    head = ["server", *(FIGURES[name] for name in work.shows), ""]
    body = [[row.title, *row.cells, row.remark] for row in rows_of(work, runs)]
    ratios = [["ratio", "median (min-max)", "target", ""], *map(list, ratios_of(work, runs))]
    return f"{work.name}: {work.says}\n{aligned([head, *body])}\n\n{aligned(ratios)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
