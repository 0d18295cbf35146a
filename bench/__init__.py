"""Measurements that are too long for the tests: `python -m bench.soak`, `python -m bench.stalled`. Loopback only."""
