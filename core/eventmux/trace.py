"""The trace that a request belongs to, as `traceparent` says (W3C Trace Context, 3.2). Who goes on with it, is not said
here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class Trace:
    """As text it is a `traceparent` of version 00, whatever version it came in: what else a later one says is not ours
    to pass on (3.2.4).
    """

    trace_id: str
    parent_id: str
    sampled: bool = False

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{int(self.sampled):02x}"


def parse_traceparent(text: str) -> Trace | None:
    """None for what is not valid, which is to be ignored: capitals, an id of zeros, version ff (3.2.2)."""
    found = _FORM.fullmatch(text.strip(" \t"))
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return Trace(trace_id, parent_id, bool(int(flags, 16) & _SAMPLED))
