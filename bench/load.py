"""The load client: compiled once, pinned to its core, its findings read. results.py knows what they mean."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .work import Work

HERE = Path(__file__).resolve().parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
PATIENCE = 240.0  # seconds for one run, connecting and a storm included

Found = dict[str, Any]  # what the load client has printed


class NoCompilerError(Exception):
    """There is nothing to make the load client with."""


class LoadError(Exception):
    """The load client could not do its work; says why."""


def compiled(source: Path) -> Path:
    """The program made of `source`, from a cache or made now. Raises NoCompilerError, LoadError."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError(
            f"{source.name} is C and has to be compiled: install a C compiler (cc), or name one in CC"
        )
    parts = [source, *sorted(HERE.glob("*.h"))]
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode() + b"".join(part.read_bytes() for part in parts))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eventmux-bench"
    program = folder / f"{source.stem}-{digest.hexdigest()[:16]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = program.with_suffix(f".{os.getpid()}")  # two that compile at once do not meet
        done = subprocess.run([compiler, *FLAGS, "-o", made, source], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadError(f"{compiler} does not compile {source.name}:\n{done.stderr}")
        made.rename(program)
    return program


def cores() -> tuple[int, int | None]:
    """The server's and the load client's. None: there is only one, and they share it."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[1] if len(allowed) > 1 else None


def load_options(work: Work, stalled: int) -> list[str]:
    """What the work asks for."""
    numbers = {
        "clients": work.clients,
        "warm": max(20, work.storm),  # those who connect first must not pay more than those who come in the storm
        "stalled": stalled,
        "storm": work.storm,
        "parallel": work.parallel,
        "seconds": work.seconds,
        "settle": work.settle,
        "ready": work.ready,
    }
    return [f"--{name}={number}" for name, number in numbers.items()]


def run_load(options: Sequence[str], *, pid: int, port: int) -> Found:
    """Load on the server of process `pid` on 127.0.0.1:`port`. Raises NoCompilerError, LoadError."""
    command = [str(compiled(HERE / "load.c")), f"--port={port}", f"--server={pid}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {next(core for core in reversed(cores()) if core is not None)})
        try:
            printed, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise LoadError(f"not finished after {PATIENCE:.0f} s") from None
    if process.returncode:
        raise LoadError(errors.strip()[-500:] or f"the load client ended with {process.returncode}")
    found: Found = json.loads(printed)
    if errors:
        found["said"] = errors.strip()[-500:]
    return found
