"""Sockets, descriptors and signals: what the service asks of the operating system before it serves."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

from ..settings import room_for_streams

if TYPE_CHECKING:
    from ..config import ServerConfig

log = logging.getLogger("eventmux.server")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError for a port in use, which uvicorn itself would only log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # Inherited by its connections. asyncio sets it where a socket says that its protocol is TCP, which these do not:
    # what follows a write would wait for the client's acknowledgement, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def guard(listener: socket.socket, server: ServerConfig) -> None:
    """Connections end that nobody is at the other end of any more: a cable, or the power, is gone and no FIN comes.
    What a listening socket has, those that it accepts inherit (tcp(7)), so it costs none of them anything.

    TCP_USER_TIMEOUT bounds how long what was sent may stay unacknowledged, a heartbeat too; without it Linux tries
    for a quarter of an hour. It also ends a client whose window stays closed: our own `send_timeout`, which says so in
    the log, comes first. Keep-alive is for connections on which nothing is sent.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    seconds = server.send_timeout
    options = {
        "TCP_USER_TIMEOUT": int(1000 * (seconds + max(1, seconds / 4))),
        "TCP_KEEPIDLE": max(1, int(seconds)),
        "TCP_KEEPINTVL": max(1, int(seconds / 4)),
        "TCP_KEEPCNT": 3,
    }
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # not everywhere
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def raise_open_files(streams: int | None) -> None:
    """As many open files as the system allows; a warning if so many `streams` as somebody has asked for need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("the limit of open files stays at %d: %s", soft, error)
    if streams is not None and streams > (room := room_for_streams()):
        log.warning(
            "at most %d files may be open, and limits.streams is %d: raise the limit (LimitNOFILE=, ulimit -n), "
            "or set limits.streams to %d or less",
            soft,
            streams,
            room,
        )


def end_at_once_on_signals() -> None:
    """While nothing has begun there is nothing to end; and an exception could be taken for a plugin's failure."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda *_: os._exit(0))
    # Nobody follows it yet, and by default it ends the process. No SIG_IGN: child processes of plugins would keep that.
    signal.signal(signal.SIGHUP, lambda *_: None)


def ignore_hangup() -> None:
    """While the interpreter ends: it puts back what the system does by default, and that is another exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
