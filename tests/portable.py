"""The service with its portable path only: `python -m portable serve` is `eventmux serve` without the direct one.

`pytest --portable` runs every test that has to do with a server this way.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from eventmux.config import Config, ServerConfig

TESTS = Path(__file__).parent

chosen = threading.Event()


def python_path() -> str:
    """Of a process that runs what this one does."""
    return os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))


def choose() -> None:
    """From now on `server.direct` is false where nothing is said, in this process and in those that tests start."""
    chosen.set()
    ServerConfig.model_fields["direct"].default = False
    ServerConfig.model_rebuild(force=True)
    Config.model_fields["server"].default = ServerConfig()
    Config.model_rebuild(force=True)


if __name__ == "__main__":
    choose()
    from eventmux.cli import main

    main(prog_name="eventmux")
