"""Where the workers of a service find each other: a directory. What it holds is not known here."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from .errors import NoDirectoryError

MAX_PATH = 100  # bytes; the name of a socket has room for 103 on some systems
REMEDY = "set TMPDIR to a directory with a short name that may be written, or mount a tmpfs at /tmp"


class Rendezvous:
    """A new directory, for this user and nobody else. Raises NoDirectoryError."""

    def __init__(self) -> None:
        self.path = _made()
        # Who tidies /tmp up takes sockets for old, whose owners have another /tmp than it has (PrivateTmp=). systemd
        # leaves a directory alone that somebody has locked (systemd.io/TEMPORARY_DIRECTORIES).
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        os.close(self._lock)
        shutil.rmtree(self.path, ignore_errors=True)


def _made() -> Path:
    try:
        made = Path(tempfile.mkdtemp(prefix="eventmux-"))
    except OSError as error:
        raise NoDirectoryError(f"no directory for the sockets of the workers ({error.strerror}): {REMEDY}") from None
    if len(os.fsencode(made)) + len("/999.sock") > MAX_PATH:
        made.rmdir()
        raise NoDirectoryError(f"{made}: too long a name for the sockets of the workers: {REMEDY}")
    return made
