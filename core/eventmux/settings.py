"""plugins.yaml read, checked against the plugins, and made into a catalog. An error points at its line."""

from __future__ import annotations

import os
import resource
import stat
import sys
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .catalog import Catalog
from .checks import (
    at_the_file,
    auth_problems,
    disabled_problems,
    is_directory,
    own_problems,
    plugin_directory,
    plugins_section,
    server_problems,
    store_problems,
)
from .config import Config
from .document import Document, Problem, read_document
from .enabling import Enabling
from .errors import ConfigError
from .fixed import hold
from .plugins import Plugins, digest, load_plugins
from .policy import Limits

DEFAULT_FILE = Path("plugins.yaml")
OTHER_FILES = 256  # descriptors beside those of the streams: files, logs, what plugins open
BUNDLED = "eventmux"  # the distribution whose sources are enabled where nothing is said
# Letters of a value of the environment. A shorter one is no secret, and is in every other word; that a longer one is in
# a text is known by its beginning, for a validator may show no more.
MIN_SECRET, MAX_SHOWN = 4, 8


@dataclass(frozen=True)
class Settings:
    """What the service is built from. `file` is None where there is no plugins.yaml, `digest` tells one content of
    it from another, and `environ` is what it is read with. `given`: keys of `server` that the command line says, which
    hold whatever the file says. `pending`: keys of the file whose change waits for the next start.
    """

    config: Config
    plugins: Plugins
    catalog: Catalog
    file: str | None = None
    digest: str | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)
    given: Mapping[str, Any] = field(default_factory=dict)
    pending: tuple[str, ...] = ()

    def with_server(self, given: Mapping[str, Any]) -> Settings:
        server = self.config.server.model_copy(update=given)
        return replace(self, config=self.config.model_copy(update={"server": server}), given=given)

    def holding(self, start: Config) -> Settings:
        """With what cannot change while the service runs as it was when that began."""
        config, pending = hold(self.config, start)
        return replace(self, config=config, pending=pending)

    @property
    def plugin_directory(self) -> Path | None:
        directory = self.config.plugins.dir
        return Path(self.file or DEFAULT_FILE).parent / directory if directory else None

    @property
    def limits(self) -> Limits:
        """As configured. Without a word on streams, as many as files may be open: who would get none is told so, and
        not left waiting for a connection that nobody can accept.
        """
        limits = Limits(**self.config.limits.model_dump())
        if "streams" in self.config.limits.model_fields_set:
            return limits
        return replace(limits, streams=min(limits.streams, room_for_streams()))

    @property
    def directory(self) -> Path:
        """To which files that it names are relative."""
        return Path(self.file or DEFAULT_FILE).parent

    @property
    def is_guarded(self) -> bool:
        """Whether requests must prove who they are from."""
        return self.config.auth is not None or bool(self.plugins.guards)


def room_for_streams() -> int:
    """Streams that this process may have open, each of which is a file to the system."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(1, files - OTHER_FILES)


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `path`, or ./plugins.yaml if there is one. Raises ConfigError with every fault found, in file order."""
    return _load(path, environ, None)


def reload_settings(before: Settings) -> Settings:
    """Read the same file again; plugins that are loaded stay, and sources that have not changed are the same objects.

    Raises ConfigError as `load_settings` does, also where the file is gone, or a pipe now: who reads that may wait for
    ever.
    """
    if before.file and os.path.lexists(before.file) and not _is_regular(Path(before.file)):
        raise ConfigError([f"{before.file}: is no regular file: put one in its place"])
    settings = _load(Path(before.file) if before.file else None, before.environ, before.plugins)
    return replace(settings.with_server(before.given), catalog=settings.catalog.keeping(before.catalog))


def _load(path: Path | None, environ: Mapping[str, str], before: Plugins | None) -> Settings:
    given = _Environment(environ)
    content = digest(path or DEFAULT_FILE)  # before it is read: if it changes in between, it counts as changed
    document, file = _read(path, given)
    plugins = _plugins(document, before)
    document = _with_bundled(document, plugins)
    enabling = Enabling(document, plugins)
    problems = [*own_problems(document), *disabled_problems(document, plugins), *enabling.problems()]
    if not problems:  # what a section means, where all of them are what they must be
        problems = [*auth_problems(document, plugins), *server_problems(document), *store_problems(document)]
    if problems:
        raise ConfigError(_report(document, problems, given))
    config = _typed(document)
    return Settings(config, plugins, enabling.catalog(config), file, content, environ)


def load_installed(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Plugins:
    """The plugins that the file's `plugins` section asks for. Raises ConfigError for what keeps it from being read.

    Faults elsewhere in the file do not matter: this serves the commands that help to mend them.
    """
    given = _Environment(environ)
    document, _ = _read(path, given)
    if problems := [problem for problem in own_problems(document) if problem.loc[:1] in ((), ("plugins",))]:
        raise ConfigError(_report(document, problems, given))
    return _plugins(document)


def load_outline(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Config, Path | None]:
    """The sections `server`, `plugins` and `store`, and the directory of plugins, without a look at any plugin. Raises
    ConfigError for what is wrong with these.
    """
    given = _Environment(environ)
    document, _ = _read(path, given)
    names = ("server", "plugins", "store")
    if problems := [p for p in own_problems(document) if p.loc[:1] in ((), *((name,) for name in names))]:
        raise ConfigError(_report(document, problems, given))
    sections = {name: document.value[name] for name in names if name in document.value}
    return Config.model_validate(sections), plugin_directory(document)


class _Environment(UserDict[str, str]):
    """The environment, and which of its values the file has asked for: an error text must not show them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.used: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        self.used[name] = super().__getitem__(name)
        return self.used[name]

    def hide(self, text: str) -> str:
        """`text` with `${NAME}` for the variable's value, and for the beginning of it that a validator has shown."""
        for name, value in sorted(self.used.items(), key=lambda item: -len(item[1])):
            for form in (value, repr(value)[1:-1]):
                start = text.find(form[:MAX_SHOWN]) if len(form) >= MIN_SECRET else -1
                if start >= 0:
                    length = next(n for n in range(len(form), 0, -1) if text.startswith(form[:n], start))
                    return self.hide(text[:start]) + f"${{{name}}}" + self.hide(text[start + length :])
        return text


def _read(path: Path | None, environ: Mapping[str, str]) -> tuple[Document, str | None]:
    """The document, whose value is a mapping, and the file's name if there is a file."""
    if path is None and not os.path.lexists(DEFAULT_FILE):
        return Document(str(DEFAULT_FILE), {}, []), None
    document = read_document(path or DEFAULT_FILE, environ)
    if not isinstance(document.value, dict):
        fault = document.problem((), f"a mapping is expected, with some of {', '.join(Config.model_fields)}")
        raise ConfigError([fault.text(document.file)])
    if document.problems and not document.value:  # not read to its end: it is not known which plugins are disabled
        raise ConfigError([problem.text(document.file) for problem in document.problems])
    return document, document.file


def _with_bundled(document: Document, plugins: Plugins) -> Document:
    if "sources" in document.value:
        return document
    bundled = [name for name, (_, plugin) in plugins.offers.items() if plugin.distribution == BUNDLED]
    return replace(document, value={**document.value, "sources": dict.fromkeys(bundled)})


def _report(document: Document, problems: list[Problem], environ: _Environment) -> list[str]:
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.column, problem.message))
    return [replace(problem, message=environ.hide(problem.message)).text(document.file) for problem in ordered]


def _typed(document: Document) -> Config:
    """The configuration of a document without problems.

    Of a source that waits for a variable, only what needs no value to be valid: it is not run, and may not be whole.
    """
    sections = document.value["sources"]
    waiting = {
        loc[1]: {key: value for key, value in sections[loc[1]].items() if key in {"use", "params", "defaults"}}
        for loc in document.unset
        if loc[2:]
    }
    return at_the_file(Config.model_validate({**document.value, "sources": {**sections, **waiting}}), document)


def _plugins(document: Document, before: Plugins | None = None) -> Plugins:
    """Load what the section asks for, as far as it can be read: what is disabled must not be imported by mistake."""
    disabled = plugins_section(document).get("disabled")
    names = disabled if isinstance(disabled, list) else [disabled]
    directory = plugin_directory(document)
    return load_plugins(
        disabled=[name for name in names if isinstance(name, str)],
        directory=directory if directory and is_directory(directory) else None,
        before=before,
    )


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True  # why it cannot be read is said where it is
