"""A redis-server or valkey-server of ours: it is started, ended, killed and paused. What it holds is not said here."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .process import PATIENCE

# What it acknowledged is there after `stop` and after `kill`: it writes a command to its file before it answers.
# `appendfsync` is `no`, since `everysec` writes up to two seconds late while the disk is busy, and only a machine that
# dies could tell the difference.
DURABLE = {"appendonly": "yes", "appendfsync": "no", "save": '""'}


class RedisProcess:
    """Run by the redis.conf in `path`, which also takes what it writes. It runs from `start` on."""

    def __init__(self, program: str, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self._program = program

    @property
    def log(self) -> Path:
        return self.path / "redis.log"

    @property
    def pid(self) -> int:
        return self._running().pid

    def write_config(self, lines: Mapping[str, str], *more: str) -> None:
        text = [f"{name} {value}" for name, value in lines.items()]
        (self.path / "redis.conf").write_text("\n".join([*text, *more]) + "\n", "utf-8")

    def answers(self) -> bool:
        """Whether it can be asked, and has loaded what it had."""
        raise NotImplementedError

    def start(self) -> None:
        """It answers when this returns."""
        if self.process is not None:
            raise RuntimeError("it runs")
        with self.log.open("ab") as log:
            command = [self._program, str(self.path / "redis.conf")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.path)
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis does not start:\n{self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM: in order, all is on the disk."""
        if (status := self._end(signal.SIGTERM)) != 0:
            raise RuntimeError(f"Redis ended with {status}:\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL: nothing is said, the kernel closes the connections."""
        if (status := self._end(signal.SIGKILL)) != -signal.SIGKILL:
            raise RuntimeError(f"Redis ended with {status}:\n{self.log.read_text()}")

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It does nothing until `resume`, and its connections stay open; the kernel takes new ones."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, however it is."""
        if self.process:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def _end(self, sig: signal.Signals) -> int:
        process = self._running()
        process.send_signal(sig)
        process.send_signal(signal.SIGCONT)  # who is paused ends, too
        status = process.wait(PATIENCE)
        self.process = None
        return status

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError("it does not run")
        return self.process
