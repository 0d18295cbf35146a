"""The service as a process of its own, and what the operating system says of it. What it serves is not known here."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0  # seconds for the service to start, or to end


class Measured:
    """What the operating system says of a process. `rss`: bytes; `cpu`: seconds used until now. OSError: it is gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def rss(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[0]) * 1024 if found else 0  # none: it has just ended

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Served(Measured):
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        super().__init__(process.pid)
        self.port = port
        self._process = process
        self._log = log

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def serving(config: Path, folder: Path, *, send_buffer: int = 0) -> Iterator[Served]:
    """`eventmux serve` with `config` on a free port; its log goes to `folder`. On leaving, it is ended, and killed if
    it does not end. With `send_buffer`, the kernel buffers about so many bytes for a connection.
    """
    command = ["eventmux", "serve", "--port", "0", "--config", str(config)]
    if send_buffer:
        command = ["bench.serve", str(config), str(send_buffer)]
    file = folder / "serve.log"
    with file.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Served(process, file, _port(process, file))
    finally:
        end(process, PATIENCE)


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """By SIGTERM, and by SIGKILL if it has not ended by then."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^eventmux .*at http://127\.0\.0\.1:(\d+),", log.read_text(), re.MULTILINE):
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")


def raise_fd_limit(needed: int) -> None:
    """Here and, since it is inherited, in the service. Raises OSError where the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(f"{needed} open files are needed, and the hard limit is {hard}: raise it (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@dataclass(frozen=True, slots=True)
class SocketMemory:
    """What the kernel holds for TCP, of all processes on this machine: it cannot be told apart by process. Bytes.

    `pressure`: from there on the kernel makes every connection's buffers smaller; None where it cannot be read.
    """

    used: int
    pressure: int | None


def socket_memory() -> SocketMemory | None:
    """None where the system does not say."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        used = int(re.findall(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)[0])
        pressure = int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return SocketMemory(used * page, pressure * page)


def surroundings() -> dict[str, Any]:
    """What a figure depends on: the machine, the date, the commit, the command."""
    cpus = re.findall(r"^model name\s*: (.*)", _text("/proc/cpuinfo"), re.MULTILINE)
    commit = _output("git", "rev-parse", "--short", "HEAD")
    dirty = _output("git", "status", "--porcelain", "--untracked-files=no", "--", "core", "plugins")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} x {cpus[0] if cpus else platform.machine()}, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}",
        "commit": commit + (" and changes" if dirty else ""),
        "command": " ".join(["python -m", __package__ + "." + Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "?"
