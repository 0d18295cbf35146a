"""A source is tested by calling it; what a client may send, by its parameters."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventmux import SourceError
from eventmux_disk import DiskUsage, disk


async def first(path: Path) -> DiskUsage:
    async with aclosing(disk(path=path)) as events:
        return await anext(events)


def test_it_says_how_full_the_disk_is(tmp_path: Path) -> None:
    usage = asyncio.run(first(tmp_path))
    assert 0 < usage.total
    assert 0 <= usage.free <= usage.total


def test_a_path_that_cannot_be_read_is_said_without_naming_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^the disk cannot be read$"):
        asyncio.run(first(tmp_path / "missing"))


def test_an_interval_that_would_load_the_disk_is_refused() -> None:
    with pytest.raises(ValidationError):
        disk.parameters(interval=0)
