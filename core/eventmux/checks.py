"""What is wrong with plugins.yaml, each fault with its place. How it is read is not said here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .config import AuthConfig, Config, ServerConfig
from .enabling import in_words
from .errors import suggestion
from .grants import faults
from .source import MAX_NAME
from .tls import TlsError, context_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from .document import Document, Loc, Problem
    from .plugins import Plugins


def own_problems(document: Document) -> Iterator[Problem]:
    """What is wrong with the file by itself, whatever the plugins are."""
    yield from document.problems
    directory = plugin_directory(document)
    if directory and not is_directory(directory):
        yield document.problem(("plugins", "dir"), f"there is no directory {directory}")
    for loc, names in document.unset.items():
        if loc[:1] != ("sources",) or len(loc) == 1:  # in a source it makes that source unavailable, and no more
            what = f"variable {names[0]} is" if len(names) == 1 else f"variables {' and '.join(names)} are"
            yield document.problem(loc, f"the environment {what} not set: set it, or write ${{NAME:-default}}")
    try:
        Config.model_validate(document.value)
    except ValidationError as invalid:
        for fault in invalid.errors(include_url=False, include_context=False):
            problem = document.problem(fault["loc"], _message(fault), key=fault["type"] == "extra_forbidden")
            if not any(_is_part(problem.loc, unset) for unset in document.unset):  # else the variable is the fault
                yield problem


def auth_problems(document: Document, plugins: Plugins) -> Iterator[Problem]:
    """Faults of the meaning of `auth`, if its types are right and its variables set; else those come first."""
    if "auth" not in document.value or any(loc[:1] == ("auth",) for loc in document.unset):
        return
    given = document.value["auth"]
    if given is None:  # which would leave everything open
        yield document.problem(("auth",), "it is empty: say who may read, or leave the key out", key=True)
        return
    try:
        auth = AuthConfig.model_validate(given)
    except ValidationError:
        return
    names, streams = (
        {name for name in section if isinstance(name, str)} if isinstance(section, dict) else set()
        for section in (document.value["sources"], document.value.get("streams"))
    )
    for loc, text in faults(auth, names, streams, Path(document.file).parent, is_hooked=bool(plugins.guards)):
        yield document.problem(("auth", *loc), text)


def _is_part(one: Loc, other: Loc) -> bool:
    """Whether one of the two is within the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _message(fault: ErrorDetails) -> str:
    loc = fault["loc"]
    if fault["type"] == "extra_forbidden":
        return f"unknown key{suggestion(str(loc[-1]), _allowed(loc[:-1]))}"
    if loc[-1] == "[key]":
        return f"a name is kebab-case, like 'reverse-echo', of at most {MAX_NAME} letters"
    return in_words(fault)


def _allowed(loc: Loc) -> frozenset[str]:
    """The keys that a mapping at `loc` may have."""
    model = _model_at(Config, loc)
    return frozenset(model.model_fields if model else ())


def _model_at(annotation: Any, loc: Loc) -> type[BaseModel] | None:
    """The model that describes what stands at `loc` below a value of this type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(loc[0])) if loc else None
        return _model_at(field.annotation, loc[1:]) if field else annotation if not loc else None
    args = get_args(annotation)
    if get_origin(annotation) in (dict, list):
        return _model_at(args[-1], loc[1:]) if loc else None
    if get_origin(annotation) is Annotated:
        return _model_at(args[0], loc)
    # Pydantic's place may have the tag of a union, which the file has not.
    return next(filter(None, (_model_at(kind, rest) for rest in (loc, loc[1:]) for kind in args)), None)


def server_problems(document: Document) -> Iterator[Problem]:
    """What a section that is valid in itself lacks on this machine."""
    section = {"server": document.value.get("server", {})}
    server: ServerConfig = at_the_file(Config.model_validate(section), document).server
    if server.http2 and importlib.util.find_spec("zttp") is None:
        yield document.problem(("server", "http2"), "zttp is not installed: pip install 'eventmux[http2]'")
    if server.tls:
        try:
            context_of(server.tls)
        except TlsError as error:
            yield document.problem(("server", "tls", error.key), str(error))


def store_problems(document: Document) -> Iterator[Problem]:
    """What a store that is valid in itself lacks on this machine."""
    if document.value.get("store", "memory") != "memory" and importlib.util.find_spec("redis") is None:
        yield document.problem(("store",), "redis is not installed: pip install 'eventmux[redis]'")


def disabled_problems(document: Document, plugins: Plugins) -> Iterator[Problem]:
    disabled = plugins_section(document).get("disabled")
    names = {plugin.name for plugin in plugins.found}
    keys = {plugin.key for plugin in plugins.found}
    for index, name in enumerate(disabled if isinstance(disabled, list) else ()):
        if isinstance(name, str) and name not in names | keys:
            near = suggestion(name, keys if ":" in name else names)
            yield document.problem(("plugins", "disabled", index), f"no plugin {name!r}{near}")


def at_the_file(config: Config, document: Document) -> Config:
    """The paths of files are relative to that of plugins.yaml."""
    if not (tls := config.server.tls):
        return config
    base = Path(document.file).parent
    tls = tls.model_copy(update={"cert": base / tls.cert, "key": base / tls.key})
    return config.model_copy(update={"server": config.server.model_copy(update={"tls": tls})})


def plugins_section(document: Document) -> Mapping[str, Any]:
    section = document.value.get("plugins")
    return section if isinstance(section, dict) else {}


def plugin_directory(document: Document) -> Path | None:
    directory = plugins_section(document).get("dir")
    return Path(document.file).parent / directory if isinstance(directory, str) else None


def is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
