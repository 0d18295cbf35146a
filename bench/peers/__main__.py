"""Starts one of the Python servers, under uvicorn as its defaults are, without an access log."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import uvicorn

from .shape import read_options

MODULES = {"naive": "starlette_sse", "native": "fastapi_sse", "aiostream": "aiostream_sse"}


def main(arguments: Sequence[str] | None = None) -> None:
    name, port, shape = read_options("python -m bench.peers", list(MODULES), arguments)
    app = importlib.import_module(f".{MODULES[name]}", __package__).make_app(shape)
    uvicorn.run(app, port=port, access_log=False, log_level="warning", backlog=4096, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    main()
