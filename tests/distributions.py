"""Real distributions for tests: modules beside their `.dist-info`, as pip leaves them in site-packages."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

HEAD = """\
from collections.abc import AsyncIterator

from eventmux import Event, hookimpl, source


class Beep(Event):
    n: int
"""


def source_text(name: str, *, beeps: int = 1) -> str:
    """A source that beeps; HEAD must stand before it."""
    return f"""

@source
async def {name}() -> AsyncIterator[Beep]:
    '''Beeps.'''
    for n in range({beeps}):
        yield Beep(n=n)
"""


def write_distribution(
    site: Path, name: str, entry_points: Mapping[str, str], modules: Mapping[str, str], *, version: str = "1.0"
) -> None:
    """Install into `site`. A module's name may have slashes and end in .py: `pkg/__init__.py`."""
    for module, text in modules.items():
        path = site / (module if module.endswith(".py") else f"{module}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    lines = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[eventmux]\n{lines}", "utf-8")
    importlib.invalidate_caches()


@contextlib.contextmanager
def on_path(*sites: Path) -> Iterator[None]:
    """Import from `sites`, before all else; afterwards nothing that was imported in between is left."""
    path, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(site) for site in sites]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name.startswith("eventmux_local_") or any(file.startswith(str(site)) for site in sites):
                del sys.modules[name]
        importlib.invalidate_caches()
