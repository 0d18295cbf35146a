"""How each server is started for a work, and ended. What is asked of it is in work.py, what it costs in results.py."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .load import HERE, compiled, cores
from .peers.shape import QUERY, TOKEN
from .ports import free_port
from .process import ROOT, end
from .work import PRODUCT, Work

PATIENCE = 20.0  # seconds for a server to start, or to end
FILES = 19_000  # connections that nginx may have
NGINX = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx")  # not in everybody's PATH


class NotFoundError(Exception):
    """This server is not there to be measured; says what is missing."""


class StartError(Exception):
    """The server did not start; says what it has printed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs: the port it must listen on, a folder of its own, where better-sse is installed. `store` and
    `linger` are of the product's configuration.
    """

    port: int
    folder: Path
    node: Path | None = None
    store: str = "memory"
    linger: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """`path`: of the stream. `load`: options of the load client. `prepare`: called with the port when it listens."""

    command: list[str]
    path: str = "/sse"
    load: tuple[str, ...] = ()
    prepare: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Running:
    """`load`: what the load client has to be told of this server."""

    pid: int
    port: int
    load: tuple[str, ...]


def product(work: Work, place: Place) -> Recipe:
    """As a user starts it, with a configuration of its own, which asks for a token where the work has one."""
    shape = work.shape
    names = [f"s{channel}" for channel in range(shape.channels)]
    sources: dict[str, dict[str, object]] = {}
    for channel, name in enumerate(names):
        paced = {"rate": shape.rate, "burst": shape.burst, "phase": channel / shape.channels}
        # An idle source is one whose next event is hours away.
        kinds = {"shared": paced, "idle": {"rate": 0.0001}, "private": {"rate": shape.rate}}
        sources[name] = {"use": "tokens" if shape.kind == "private" else "marks", "params": kinds.get(shape.kind, {})}
    sources |= {"quotes": {}, "quote": {}, "tokens": {}}
    if place.linger is not None:
        sources = {name: {**source, "linger": place.linger} for name, source in sources.items()}
    config = place.folder / "plugins.yaml"
    text: dict[str, object] = {
        "sources": sources,
        "streams": {"all": names},
        "plugins": {"dir": str(HERE / "local")},
        "store": place.store,
        "limits": {"new_streams": 1_000_000},  # the peers have no such limit
    }
    is_guarded = shape.kind.startswith("quotes")
    if is_guarded:
        text["auth"] = {"tokens": [{"name": "bench", "token": TOKEN, "read": ["*"]}]}
    config.write_text(json.dumps(text))  # JSON is YAML
    command = [sys.executable, "-m", "eventmux", "serve", "--config", str(config), "--port", str(place.port)]
    if is_guarded:
        return Recipe(command, work.path, (f"--header=Authorization: Bearer {TOKEN}",))
    # Who stalls reads a source that never ends beside the others, so that what the kernel buffers is soon full.
    load = (f"--stalled-path=/sse?sources={names[0]},tokens",) if work.stalled else ()
    return Recipe(command, "/sse/s0" if shape.channels == 1 else "/sse/all", load)


def python_peer(name: str) -> Callable[[Work, Place], Recipe]:
    def recipe(work: Work, place: Place) -> Recipe:
        command = [sys.executable, "-m", "bench.peers", name, "--port", str(place.port), *work.shape.options()]
        if not work.shape.kind.startswith("quotes"):
            return Recipe(command)
        return Recipe(command, f"/sse/quotes?{QUERY}", (f"--header=Authorization: Bearer {TOKEN}",))

    return recipe


def floor(work: Work, place: Place) -> Recipe:
    shape = work.shape
    program = str(compiled(HERE / "peers" / "floor.c"))
    numbers = (place.port, shape.rate if shape.kind == "shared" else 0, shape.burst, shape.channels)
    return Recipe([program, *map(str, numbers), str(int(shape.kind == "private"))])


def nchan(work: Work, place: Place) -> Recipe:
    """Events are posted by the load client: on its core, while nginx pays for taking them in."""
    nginx = find_nginx()
    filled = {"load_module": nchan_module(nginx), "files": str(FILES)}
    filled |= {"folder": str(place.folder), "port": str(place.port)}
    text = (HERE / "peers" / "nchan.conf").read_text()
    for word, value in filled.items():
        text = text.replace("{" + word + "}", value)
    config = place.folder / "nginx.conf"
    config.write_text(text)
    shape = work.shape
    ids = [f"c{channel}" for channel in range(shape.channels)]
    load: list[str] = []
    if shape.kind == "shared":
        load = ["--publish=/publish?id=c%d", f"--channels={shape.channels}", f"--rate={shape.rate}"]
        # As fast as it can: four connections with a few posts under way keep it busy all the time.
        load += ["--publishers=4", "--depth=8"] if shape.rate == 0 else ["--publishers=1"]

    def prepare(port: int) -> None:
        for channel in ids:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/publish?id={channel}", data=b"hello")
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - our own server

    command = [nginx, "-p", str(place.folder), "-e", str(place.folder / "nginx.log"), "-c", str(config)]
    return Recipe(command, "/sse?id=" + ",".join(ids), tuple(load), prepare)


def better_sse(work: Work, place: Place) -> Recipe:
    node = shutil.which("node")
    if node is None:
        raise NotFoundError("Node is not installed")
    if place.node is None:
        raise NotFoundError("--node names no folder in which better-sse is installed")
    if not (place.node / "node_modules" / "better-sse").is_dir():
        raise NotFoundError("better-sse is not installed in the folder of --node: npm install better-sse")
    script = place.folder / "better-sse.mjs"  # node looks for packages from where the script is
    shutil.copy(HERE / "peers" / script.name, script)
    (place.folder / "node_modules").symlink_to(place.node.resolve() / "node_modules")
    shape = work.shape
    words = (place.port, shape.kind, shape.rate, shape.burst, shape.channels)
    return Recipe([node, str(script), *map(str, words)])


SERVERS: dict[str, Callable[[Work, Place], Recipe]] = {
    PRODUCT: product,
    "unstalled": product,
    "nchan": nchan,
    "better-sse": better_sse,
    "naive": python_peer("naive"),
    "native": python_peer("native"),
    "aiostream": python_peer("aiostream"),
    "floor": floor,
}


def find_nginx() -> str:
    for place in (shutil.which("nginx"), *NGINX):
        if place and os.access(place, os.X_OK):
            return place
    raise NotFoundError("nginx is not installed (Debian: nginx-light and libnginx-mod-nchan)")


def nchan_module(nginx: str) -> str:
    """The line that loads it; empty where nginx was built with it."""
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, timeout=10, check=False).stderr
    if re.search(r"--add-module=\S*nchan", built):
        return ""
    folder = re.search(r"--modules-path=(\S+)", built)
    module = Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_nchan_module.so"
    if not module.exists():
        raise NotFoundError(f"nginx has no module Nchan: no {module.name} in its modules (Debian: libnginx-mod-nchan)")
    return f"load_module {module};"


@contextlib.contextmanager
def running(
    server: str,
    work: Work,
    folder: Path,
    node: Path | None,
    *,
    store: str = "memory",
    linger: float | None = None,
    core: int | None = None,
) -> Iterator[Running]:
    """The server, listening, pinned to its core. Ended on leaving, and killed if it does not end.

    Raises NotFoundError, StartError, NoCompilerError, LoadError.
    """
    place = Place(free_port(), folder, node, store, linger)
    recipe = SERVERS[server](work, place)
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(recipe.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        # Before it has threads: they do as the first one.
        os.sched_setaffinity(process.pid, {cores()[0] if core is None else core})
        _wait_until_listening(process, place.port, log)
        recipe.prepare(place.port)
        time.sleep(0.3)  # what it does once it listens is not to be in the figures
        yield Running(process.pid, place.port, (f"--path={recipe.path}", *recipe.load))
    finally:
        end(process, PATIENCE)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise StartError(f"did not start: {log.read_text(errors='replace').strip()[-500:] or 'it said nothing'}")
