"""What eventmux is measured against: other ways to serve the same events. `python -m bench.peers NAME` starts one."""
