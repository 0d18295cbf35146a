"""The event that all Python servers of the benchmark send: as long, and with the same mark, as that of ../mark.h."""

from __future__ import annotations

import time

from pydantic import BaseModel

PAD = "0" * 56  # makes the JSON 120 bytes long


class Mark(BaseModel):
    t: str
    seq: int
    src: str
    value: str


def make_mark(number: int, channel: int) -> Mark:
    """`number`: from 1, of seven digits on the wire."""
    return Mark(t=f"@{time.monotonic_ns():019d}", seq=1_000_000 + number, src=f"s{channel:02d}", value=PAD)
