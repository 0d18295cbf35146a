"""What a run of the suite leaves behind: JSON, written and read again. It holds each raw result."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .peers.shape import Shape
from .results import Run
from .work import Ratio, Work


@dataclass(frozen=True, slots=True)
class Recorded:
    """`about`: see about.py. The works are those of that time, with the targets of that time."""

    about: dict[str, Any]
    works: list[Work]
    runs: list[Run]

    def runs_of(self, work: Work) -> list[Run]:
        return [run for run in self.runs if run.work == work.name]


def write(file: Path, recorded: Recorded) -> None:
    runs = [{**asdict(run), "figures": run.figures} for run in recorded.runs]
    everything = {"about": recorded.about, "works": [asdict(work) for work in recorded.works], "runs": runs}
    file.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")


def read(file: Path) -> Recorded:
    """Figures are made anew of what was found: how they are made may have been mended since."""
    found = json.loads(file.read_text("utf-8"))
    runs = [Run(one["work"], one["server"], one["round"], one["found"], one["error"]) for one in found["runs"]]
    return Recorded(found["about"], [_work(one) for one in found["works"]], runs)


def _work(found: dict[str, Any]) -> Work:
    """JSON knows lists, and a work has tuples."""
    ratios = tuple(Ratio(**ratio) for ratio in found["ratios"])
    changed = {"shape": Shape(**found["shape"]), "ratios": ratios}
    changed |= {name: tuple(found[name]) for name in ("servers", "shows")}
    return Work(**{**found, **changed})
