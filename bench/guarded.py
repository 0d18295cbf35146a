"""The product behind a token, for the benchmark of connects: `python -m bench.guarded CONFIG PORT`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from fastapi import Depends

from eventmux.app import create_app
from eventmux.settings import load_settings
from eventmux.web.server import bind, make_server

from .peers.guard import check


def main(file: str, port: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    settings = load_settings(Path(file))
    app = create_app(settings, dependencies=[Depends(check)])
    make_server(app, settings.config.server).run(sockets=[bind("127.0.0.1", int(port))])


if __name__ == "__main__":
    main(*sys.argv[1:])
