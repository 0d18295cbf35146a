"""What a server of the benchmark is asked for, as the options of a command. No server is known here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["shared", "private", "idle", "quotes-shared", "quotes-private"]

# Of a request for `quotes-*`.
QUERY = "symbol=ACME&depth=5&interval=60"
TOKEN = "the-token-of-the-benchmark"  # noqa: S105 - it guards nothing


@dataclass(frozen=True, slots=True)
class Shape:
    """`shared`: `channels` sources for all, each `burst` events at once, `rate` times a second; with rate 0 in every
    turn of the loop. `private`: `channels` sources for each client, each `rate` events a second; with rate 0 one in
    every turn. `idle`: a shared source that says nothing. `quotes-*`: a route with parameters and authentication, whose
    source has one event at once. Bursts with a rate, and private sources with one, are of the product alone.
    """

    kind: Kind
    rate: float = 10.0
    burst: int = 1
    channels: int = 1

    def options(self) -> list[str]:
        return [
            f"--kind={self.kind}",
            f"--rate={self.rate}",
            f"--burst={self.burst}",
            f"--channels={self.channels}",
        ]


def read_options(program: str, names: Sequence[str], arguments: Sequence[str] | None) -> tuple[str, int, Shape]:
    """The name of the server, the port to listen on, the shape."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("name", choices=names)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=get_args(Kind), default="shared")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    options = parser.parse_args(arguments)
    return options.name, options.port, Shape(options.kind, options.rate, options.burst, options.channels)
