"""Pace: the parameters that say how often and how many times. No source."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

DAY = 86_400

Interval = Annotated[
    float,
    Field(ge=0, le=DAY, allow_inf_nan=False, description="seconds between two events; 0 is as fast as they are read"),
]
Times = Annotated[int, Field(ge=1, le=1_000_000_000, description="how many events in all; without it there is no end")]


def turns(count: int | None) -> Iterable[int]:
    """0, 1, 2, ...: `count` numbers, or without end."""
    return itertools.count() if count is None else range(count)
