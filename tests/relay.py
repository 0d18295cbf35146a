"""The relay of the measurements, for tests."""

from bench.relay import Connection, Relay, read, relaying, running

__all__ = ["Connection", "Relay", "read", "relaying", "running"]
