"""disk: how full a disk is. One run serves all who ask for the same interval."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eventmux import ConfigOnly, Event, SourceError, source


class DiskUsage(Event):
    """All in bytes."""

    total: int
    used: int
    free: int


@source(shared=True)
async def disk(
    interval: Annotated[float, Field(ge=0.1, le=3_600, description="seconds between two looks")] = 5.0,
    path: Annotated[Path, ConfigOnly] = Path("/"),
) -> AsyncIterator[DiskUsage]:
    """How full the disk is that `path` lies on, every `interval` seconds."""
    while True:
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, path)
        except OSError as error:
            raise SourceError("the disk cannot be read", retryable=True) from error
        yield DiskUsage(total=usage.total, used=usage.used, free=usage.free)
        await asyncio.sleep(interval)
