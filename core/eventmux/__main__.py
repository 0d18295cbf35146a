"""`python -m eventmux`."""

from .cli import main

main(prog_name="eventmux")
