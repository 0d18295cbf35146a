"""`eventmux serve` with a bound on what the kernel buffers for each connection: `python -m bench.serve FILE BYTES`."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

from eventmux.app import create_app
from eventmux.settings import load_settings
from eventmux.web.server import bind, make_server


def main(file: str, send_buffer: str) -> None:
    """The options of a listening socket are those of the connections it accepts."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    settings = load_settings(Path(file))
    listening = bind("127.0.0.1", 0)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, int(send_buffer))
    print(f"eventmux at http://127.0.0.1:{listening.getsockname()[1]}, SO_SNDBUF {send_buffer}", flush=True)
    make_server(create_app(settings), settings.config.server).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
