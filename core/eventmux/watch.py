"""Says when files hold something else than before. What is in them, and what becomes of that, is not known here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

from watchfiles import awatch

log = logging.getLogger("eventmux.watch")

LOOK_SECONDS = (
    1.0  # it looks so often in any case: not every file system tells of changes, and a link may lead to another
)
DEBOUNCE = 0.4  # where something changes all the time, it looks so often
LINKS = 40  # followed at most, as Linux does

Look: TypeAlias = "Callable[[], Iterable[Path]]"
Seen: TypeAlias = "dict[str, tuple[int, ...] | None]"


async def changes(look: Look) -> AsyncGenerator[None, None]:
    """Yield when one of the files may hold something else, is gone or there again. `look` names them anew each time.

    Directories are watched, not files: editors and ConfigMaps put another file in the place of the old one.
    """
    files = list(look())
    seen = _seen(files)
    while True:
        names = _names(files)
        directories = _directories(names)
        async with aclosing(_stirs(directories, names)) as stirs:
            async for _ in stirs:
                files = list(look())  # once: there may be thousands of others in their directories
                found = _seen(files)
                if found != seen:
                    seen = found
                    yield
                now = _names(files)
                if now != names or _directories(now) != directories:
                    break


async def _stirs(directories: Mapping[str, tuple[int, ...]], names: frozenset[str]) -> AsyncGenerator[None, None]:
    """Something has happened to one of the names or in it, or it is time to look all the same. A log that is written
    next to them wakes nobody.
    """
    try:
        async for _ in awatch(
            *directories,
            watch_filter=lambda _, path: path in names or os.path.dirname(path) in names,  # noqa: PTH120 - of texts
            debounce=int(DEBOUNCE * 1000),
            rust_timeout=int(LOOK_SECONDS * 1000),
            yield_on_timeout=True,
            recursive=False,
            ignore_permission_denied=True,
        ):
            yield
    except OSError as error:  # the system has no watch left, or the directory has gone meanwhile
        log.debug("the directories %s cannot be watched: %s", ", ".join(directories), error)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        yield


def _seen(files: Iterable[Path]) -> Seen:
    """What tells one content of a file from another, without reading it; None for one that is not there."""
    return {str(path): _stat(path) for path in files}


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _names(files: Iterable[Path]) -> frozenset[str]:
    """Of the files, and of every link on the way to them."""
    return frozenset(str(step) for path in files for step in _way(path))


def _directories(names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Those in which something happens when one of the names is changed, or comes to mean something else."""
    found: dict[str, tuple[int, ...]] = {}
    for directory in sorted({os.path.dirname(name) for name in names}):  # noqa: PTH120 - of texts
        stat = _stat(Path(directory))
        if stat and Path(directory).is_dir():
            found[directory] = stat[:2]
    return found


def _way(path: Path) -> list[Path]:
    """The path, and where its links lead, one after the other."""
    way = [Path(os.path.abspath(path))]  # noqa: PTH100 - Path.resolve would follow the links
    while len(way) < LINKS:
        step = next((part for part in [*reversed(way[-1].parents), way[-1]] if part.is_symlink()), None)
        if step is None:
            break
        way += [step, Path(os.path.normpath(step.parent / step.readlink() / way[-1].relative_to(step)))]
    return way
