"""A YAML scalar as a value: the core schema of YAML 1.2, and variables of the environment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import yaml

MAX_DIGITS = 1000  # int() raises at 4300
TAG = "tag:yaml.org,2002:"
# A default ends before the next "${": else a file full of unclosed ones is scanned to its end for each of them.
_VARIABLE = re.compile(r"\$\$|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:[^$}]|\$(?!\{))*))?\})?")

# The core schema (YAML 1.2.2, 10.3.2), in the order of resolution.
_CORE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile("(null|Null|NULL|~)?"), lambda _: None),
    "bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (
        re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, 0 if text[1:2] in ("o", "x") else 10),
    ),
    "float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    ),
    "str": (re.compile(".*", re.DOTALL), str),
}

UNKNOWN_TAG = "an unknown tag: allowed are !!str, !!int, !!float, !!bool, !!null; quote a text that begins with '!'"
_MALFORMED = "a malformed ${: allowed are ${NAME} and ${NAME:-default}, without another ${ in it; a plain ${ is $${"


class RefusalError(Exception):
    """What is wrong, in words that may be shown. `place`: line and column; 0, 0 where only the caller knows it."""

    def __init__(self, message: str, place: tuple[int, int] = (0, 0)) -> None:
        self.place = place
        super().__init__(message)


def resolve(event: yaml.ScalarEvent) -> Any:
    """The scalar as the core schema has it: the tag decides, else the quotes, else what it looks like."""
    text, tag = event.value, event.tag
    if tag is None:
        kind = next(kind for kind in _CORE if _CORE[kind][0].fullmatch(text)) if event.implicit[0] else "str"
    else:
        kind = "str" if tag == "!" else tag.removeprefix(TAG)
        if kind not in _CORE:
            raise RefusalError(UNKNOWN_TAG)
        if not _CORE[kind][0].fullmatch(text):
            raise RefusalError(f"this is not a !!{kind} of YAML 1.2: leave the tag out, or write one")
    if kind in ("int", "float") and len(text) > MAX_DIGITS:
        raise RefusalError(f"a number of more than {MAX_DIGITS} digits: quote it if it is a text")
    return _CORE[kind][1](text)


def expand(text: str, environ: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The text with its variables' values, which are not expanded again, and the names that have no value."""
    unset: dict[str, None] = {}

    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$$":
            return "$"
        if name is None:
            raise RefusalError(_MALFORMED)
        if not environ.get(name) and default is None:
            unset[name] = None  # an empty one, too: that is what container tools make of one that is not set
        return environ.get(name) or (default or "").replace("$$", "$")

    return _VARIABLE.sub(replacement, text), tuple(unset)
