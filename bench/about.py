"""What the figures depend on: the machine, the commit, the versions of everything that was measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import process
from .load import cores
from .servers import NotFoundError, find_nginx, nchan_module

PACKAGES = ("fastapi", "starlette", "uvicorn", "httptools", "uvloop", "pydantic", "sse-starlette", "aiostream")


def surroundings(command: str, node: Path | None, *, is_quick: bool) -> dict[str, object]:
    """Strings and flags, for JSON. `command`: what was run."""
    return {
        **process.surroundings(),
        "command": command,
        "cores": len(os.sched_getaffinity(0)),
        "is_pinned": cores()[1] is not None,
        "is_quick": is_quick,
        "versions": {**_packages(), **_programs(node)},
    }


def _packages() -> dict[str, str]:
    found = {"eventmux": version("eventmux")}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # uvloop and httptools are not everywhere
    return found


def _programs(node: Path | None) -> dict[str, str]:
    found = {"cc": _version(os.environ.get("CC", "cc"), "--version"), "node": _version("node", "--version")}
    try:
        nginx = find_nginx()
        found["nginx"] = _version(nginx, "-v")
        found["nchan"] = _nchan_version(nginx)
    except NotFoundError:
        pass
    if node:
        package = node / "node_modules" / "better-sse" / "package.json"
        found["better-sse"] = json.loads(package.read_text("utf-8"))["version"] if package.exists() else ""
    return {name: text for name, text in found.items() if text}


def _nchan_version(nginx: str) -> str:
    """The module does not say it; the package that it is from does, if it is from one."""
    module = nchan_module(nginx).removeprefix("load_module ").removesuffix(";")
    return _version("dpkg-query", "-W", "-f=${Version}", "libnginx-mod-nchan") if module else ""


def _version(program: str, *words: str) -> str:
    """The version in what it prints; empty if it is not there."""
    if shutil.which(program) is None:
        return ""
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=10, check=False)
    numbers = re.findall(r"\d+(?:\.\d+)+", (done.stdout or done.stderr).partition("\n")[0])
    return numbers[-1] if numbers else ""
