"""`python -m bench`: the product and what it is measured against, at the same work, in turn, round by round.

Needs Linux and a C compiler. Exits 2 without one, 1 if the product itself could not be measured, and 0 otherwise:
whether a target is met is for the table to say.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .about import surroundings
from .load import LoadError, NoCompilerError, compiled, cores, load_options, run_load
from .picture import picture
from .process import raise_fd_limit
from .recorded import Recorded, write
from .results import Run, fault_of
from .servers import SERVERS, NotFoundError, StartError, running
from .table import table
from .work import BY_NAME, PRODUCT, WORKS, Work

SPARE_FILES = 300  # open files beside the connections


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each server does each work; default 3")
    parser.add_argument("--work", type=_names(BY_NAME), default=list(BY_NAME), help="some of it, separated by commas")
    parser.add_argument("--servers", type=_names(SERVERS), default=list(SERVERS), help="some of them")
    parser.add_argument("--node", type=Path, help="folder in which better-sse is installed (npm install better-sse)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="folder for results.json and the picture"
    )
    parser.add_argument("--quick", action="store_true", help="one short round with few clients: whether it runs at all")
    parser.add_argument("--list", action="store_true", help="what there is")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{work.name:<16} {work.says}\n{'':<16} {', '.join(work.servers)}" for work in WORKS))
        return 0
    try:
        compiled(Path(__file__).with_name("load.c"))
    except (NoCompilerError, LoadError) as error:
        print(error, file=sys.stderr)
        return 2
    works = [BY_NAME[name].shortened() if options.quick else BY_NAME[name] for name in options.work]
    if cores()[1] is None:
        print("There is one core: the load client takes its time from the server, and delays say little.")
    rounds = 1 if options.quick else options.rounds
    recorded = Recorded(surroundings(_command(options), options.node, is_quick=options.quick), works, [])
    try:
        for run in measure(works, options.servers, rounds, options.node):
            recorded.runs.append(run)
    except KeyboardInterrupt:
        print("interrupted: this is what there is until now")
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "results.json", recorded)
    (options.out / "results.svg").write_text(picture(recorded), "utf-8")
    print("\n\n".join(["", *(table(work, recorded.runs_of(work)) for work in works)]))
    print(f"\nwritten to {options.out}: results.json, results.svg")
    return int(any(run.error for run in recorded.runs if run.server == PRODUCT))


def measure(works: Sequence[Work], servers: Sequence[str], rounds: int, node: Path | None) -> Iterator[Run]:
    """Every server in turn, round after round, so that whatever else the machine does meets them all."""
    for work in works:
        wanted = [server for server in work.servers if server in servers]
        for number in range(rounds):
            for server in wanted:
                run = measure_once(work, server, number, node)
                shown = ", ".join(f"{name} {run.figures[name]:.4g}" for name in work.shows[:5] if name in run.figures)
                print(f"{work.name} {server} {number + 1}/{rounds}: {run.error or shown}", flush=True)
                yield run


def measure_once(work: Work, server: str, number: int, node: Path | None) -> Run:
    try:
        raise_fd_limit(work.clients + work.storm + work.stalled + SPARE_FILES)
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            running(server, work, Path(folder), node) as one,
        ):
            stalled = work.stalled if server != "unstalled" else 0
            found = run_load([*load_options(work, stalled), *one.load], pid=one.pid, port=one.port)
    except (NotFoundError, StartError, NoCompilerError, LoadError, OSError) as error:
        return Run(work.name, server, number, error=str(error))
    if fault := fault_of(work, found):
        return Run(work.name, server, number, error=fault)
    return Run(work.name, server, number, found)


def _command(options: argparse.Namespace) -> str:
    """What is run, without folders, which say nothing to others."""
    words = ["python -m bench", "--quick" if options.quick else f"--rounds {options.rounds}"]
    words += [f"--work {','.join(options.work)}"] * (options.work != list(BY_NAME))
    words += [f"--servers {','.join(options.servers)}"] * (options.servers != list(SERVERS))
    return " ".join(words + ["--node FOLDER"] * bool(options.node))


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}: there is {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
