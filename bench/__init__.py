"""Measurements that are too long for the tests; README.md says which. They talk to loopback only."""
