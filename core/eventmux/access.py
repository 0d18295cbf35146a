"""Who asks, and what they may do. How they have proved it is not said here."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

PATTERN = re.compile(r"[a-z0-9*?-]+")
MAX_PATTERN = 63  # letters, as many as a name has
MAX_PATTERNS = 1_000
MAX_PRINCIPAL = 128  # letters of a name


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. A plugin's `authenticate` returns one: `Principal("alice", read=["clock", "price-*"])`.

    `read`, `publish`: the names of sources, or patterns: `*` is any letters, `?` one. `expires`: seconds since 1970,
    when its streams end. `scheme` and `mark`, what stands before the cursors that it is given, are the service's to
    say.
    """

    name: str
    scheme: Literal["token", "jwt", "hook", "anonymous"] = "hook"
    read: Iterable[str] = ()
    publish: Iterable[str] = ()
    expires: float | None = None
    mark: bytes = b""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_PRINCIPAL or not self.name.isprintable():
            raise ValueError(f"a principal's name is a text of 1 to {MAX_PRINCIPAL} printable letters")
        if self.expires is not None and not math.isfinite(self.expires):
            raise ValueError("expires is a number of seconds since 1970, or None")
        object.__setattr__(self, "read", _patterns(self.read))
        object.__setattr__(self, "publish", _patterns(self.publish))

    @property
    def id(self) -> str | None:
        """Unlike that of any other. None for who is nobody in particular: their private runs are protected by the 128
        bits of their epochs alone.
        """
        return None if self.is_anonymous else f"{self.scheme}:{self.name}"

    @property
    def is_anonymous(self) -> bool:
        return self.scheme == "anonymous"

    def has_expired(self) -> bool:
        return self.expires is not None and time.time() >= self.expires

    def may_read(self, source: str) -> bool:
        # The standard library keeps patterns compiled, and without a backtracking that an odd one could make long.
        return any(fnmatchcase(source, pattern) for pattern in self.read)

    def may_publish(self, source: str) -> bool:
        return any(fnmatchcase(source, pattern) for pattern in self.publish)


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TypeError(f"read and publish are lists of patterns: write [{given!r}]")
    found = tuple(given)
    for pattern in found:
        if not PATTERN.fullmatch(pattern) or len(pattern) > MAX_PATTERN:
            raise ValueError(f"{pattern!r:.80} is no pattern of names: at most {MAX_PATTERN} of a-z, 0-9, -, * and ?")
    if len(found) > MAX_PATTERNS:
        raise ValueError(f"at most {MAX_PATTERNS} patterns")
    return found


# Where no auth is configured, and where anonymous clients are granted nothing.
EVERYBODY = Principal("everybody", "anonymous", read=("*",), publish=("*",))
NOBODY = Principal("nobody", "anonymous")
