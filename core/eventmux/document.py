"""A YAML file as plain values, each with its place in the text. What the values mean is not said here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .scalar import TAG, UNKNOWN_TAG, RefusalError, expand, resolve

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

Loc = tuple[str | int, ...]
Place = tuple[int, int]  # line and column, from 1, as an editor shows them; 0, 0 is the file as a whole

MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 64

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORD = re.compile(r"[-\w]+")

# YAML's printable characters, without those that YAML 1.1 takes for line breaks and an editor does not.
_UNPRINTABLE = re.compile("[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


TOO_DEEP = f"values nested more than {MAX_DEPTH} deep: make the file flatter"

# No tag, alias or character of the file is ever shown, as a password may begin with "!" or "*": hence words of ours.
_SYNTAX = {  # by a part of the parser's words
    "mapping values": "a ':' that cannot be here: quote a value that holds ': ', and check the indentation",
    "cannot start": "nothing begins with this character: quote the value, and indent with spaces, not tabs",
    "end of stream": "the quote that begins here is not closed",
    "escape": "an escape that double quotes do not know: double the '\\', or use single quotes",
    "',' or ": "a comma or the closing bracket is missing: quote a value that holds one, or ${",
    "nesting depth": TOO_DEEP,  # libyaml's own bound is 1,000, since 0.2.6 as PyYAML 6.0.4 brings it
    "alphabetic": "this names no anchor: quote a text that begins with '*' or '&'",
    "": "not YAML from here on: check the indentation (spaces, not tabs), the quotes and the brackets",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault at a place; 0, 0 means the file as a whole. This module's messages never hold a value."""

    line: int
    column: int
    loc: Loc
    message: str

    def text(self, file: str) -> str:
        """`plugins.yaml:7:5: sources.clock.parms: <message>`."""
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        return ": ".join(filter(None, (place, _dotted(self.loc), self.message)))


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. `value` is {} for a file that holds nothing and for one that cannot be read to its end.

    `unset`: where a `${NAME}` has no value, and the names; the value there is None. `places`: of key and of value.
    """

    file: str
    value: Any = field(repr=False)  # secrets among it
    problems: list[Problem]
    unset: dict[Loc, tuple[str, ...]] = field(default_factory=dict)
    places: dict[Loc, tuple[Place, Place]] = field(default_factory=dict, repr=False)

    def problem(self, loc: Loc, message: str, *, key: bool = False) -> Problem:
        """A problem with the value at `loc`, or with its key, at the nearest place that the file has.

        `loc` may be pydantic's: what the file does not have (the tag of a union) is left out of it, but for the name
        of a key that is missing from a mapping, and "[key]" at its end means the key.
        """
        known: Loc = ()
        rest: Loc = ()
        for part in loc:
            known, rest = ((*known, part), ()) if (*known, part) in self.places else (known, (part,))
        on_key = rest == ("[key]",)
        if on_key or not isinstance(reduce(getitem, known, self.value), dict):
            rest = ()
        line, column = self.places.get(known, ((0, 0), (0, 0)))[0 if key or on_key else 1]
        return Problem(line, column, known + rest, message)


def read_document(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Document:
    """Never raises for a bad file: what is wrong with it is among the document's problems."""
    place = (0, 0)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) <= MAX_BYTES:
            return parse_document(content.decode(), str(path), environ)
        message = f"the file is larger than {MAX_BYTES} bytes: make it smaller"
    except UnicodeDecodeError as error:
        place = _end(content[: error.start].decode())
        message = "the file is not UTF-8 text: save it as UTF-8"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a file name"
        message = f"cannot be read ({reason}): name a file that exists and that this user may read"
    return Document(str(path), {}, [Problem(*place, (), message)])


def parse_document(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """The document in `text`; `file` is its name for messages. Never raises for a bad text."""
    reading = _Reading(environ)
    try:
        root = _compose(text.removeprefix("\ufeff"))
        value = reading.value(root, (), root.place) if root else None
    except RefusalError as refusal:
        return Document(file, {}, [*reading.problems, Problem(*refusal.place, (), str(refusal))])
    return Document(file, {} if value is None else value, reading.problems, reading.unset, reading.places)


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """What is at a place, and the nodes in it; those of a mapping are keys and values by turns."""

    event: yaml.ScalarEvent | yaml.CollectionStartEvent
    place: Place
    children: list[_Node]


def _compose(text: str) -> _Node | None:
    """The only document's root. Without recursion: at 100,000 brackets PyYAML's composer in C crashes the process."""
    roots: list[_Node] = []
    opened: list[_Node] = []
    anchors: dict[str | None, _Node] = {}
    count = 0
    for event in _events(text):
        place = _place(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent) and roots:
            raise RefusalError("a second document begins here: keep one in a file", place)
        if isinstance(event, yaml.CollectionEndEvent):
            opened.pop()
        if isinstance(event, yaml.AliasEvent):
            node = _aliased(anchors.get(event.anchor), opened, place)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            node = anchors[event.anchor] = _Node(event, place, [])
        else:
            continue
        count += 1
        _check_bounds(count, len(opened), place)
        (opened[-1].children if opened else roots).append(node)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(node)
    return roots[0] if roots else None


def _events(text: str) -> Iterator[yaml.Event]:
    if odd := _UNPRINTABLE.search(text):
        remedy = "remove it, or write it as an escape in double quotes"
        raise RefusalError(f"the unprintable character U+{ord(odd[0]):04X}: {remedy}", _end(text[: odd.start()]))
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        theirs = next(part for part in _SYNTAX if part in str(error.problem))
        opening = f"; the bracket opens at line {_place(error.context_mark)[0]}" if "',' or " in theirs else ""
        place = _place(error.context_mark if theirs == "end of stream" else error.problem_mark)
        raise RefusalError(_SYNTAX[theirs] + opening, place) from None
    except (yaml.YAMLError, ValueError):  # the parser in Python gives "\U00110000" to chr()
        raise RefusalError("not YAML: check the escapes in double quotes") from None


def _aliased(target: _Node | None, opened: list[_Node], place: Place) -> _Node:
    if target is None:
        raise RefusalError("an alias without an anchor before it: quote a text that begins with '*'", place)
    if target in opened:
        raise RefusalError("an alias inside its own anchor: write the value out", place)
    return _Node(target.event, place, target.children)


class _Reading:
    """One walk down from the root, and what it gathers."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.unset: dict[Loc, tuple[str, ...]] = {}
        self.places: dict[Loc, tuple[Place, Place]] = {}
        self.weight = 0

    def value(self, node: _Node, loc: Loc, key: Place) -> Any:
        self.places[loc] = (key, node.place)
        event = node.event
        text = event.value if isinstance(event, yaml.ScalarEvent) else ""
        self.weight += 1 + len(text) // 1024  # 9,999 aliases of one long text are a bomb as well
        _check_bounds(self.weight, len(loc), node.place)
        try:
            if isinstance(event, yaml.ScalarEvent):
                return self._scalar(event, loc)
            kind = "seq" if isinstance(event, yaml.SequenceStartEvent) else "map"
            if event.tag not in (None, "!", TAG + kind):
                raise RefusalError(UNKNOWN_TAG)
        except RefusalError as refusal:
            self.problems.append(Problem(*node.place, loc, str(refusal)))
            return None
        if kind == "map":
            return self._mapping(node, loc)
        return [self.value(child, (*loc, index), child.place) for index, child in enumerate(node.children)]

    def _scalar(self, event: yaml.ScalarEvent, loc: Loc) -> Any:
        value = resolve(event)
        if not isinstance(value, str):
            return value
        text, unset = expand(value, self.environ)
        if unset:
            self.unset[loc] = unset
        return None if unset else text

    def _mapping(self, node: _Node, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in zip(node.children[::2], node.children[1::2], strict=True):
            at = (*loc, key.event.value) if isinstance(key.event, yaml.ScalarEvent) else loc
            try:
                name = _key(key.event)
                if name in found:
                    raise RefusalError(f"the key is at line {self.places[at][0][0]} already: keep one of the two")
            except RefusalError as refusal:
                self.problems.append(Problem(*key.place, at, str(refusal)))
            else:
                found[name] = self.value(value, at, key.place)
        return found


def _key(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> str:
    if not isinstance(event, yaml.ScalarEvent) or not isinstance(resolve(event), str):
        raise RefusalError("a key must be a text: quote it")
    if event.value == "<<" and event.implicit[0]:
        raise RefusalError("YAML 1.2 has no merge key: write its keys out, or quote it")
    return event.value


def _check_bounds(nodes: int, depth: int, place: Place) -> None:
    if nodes > MAX_NODES:
        raise RefusalError(f"more than {MAX_NODES} values, those of each alias included: make the file smaller", place)
    if depth > MAX_DEPTH:
        raise RefusalError(TOO_DEEP, place)


def _place(mark: Any) -> Place:
    return mark.line + 1, mark.column + 1


def _end(text: str) -> Place:
    """The place right behind the text."""
    lines = re.split(r"\r\n?|\n", text.removeprefix("\ufeff"))
    return len(lines), len(lines[-1]) + 1


def _dotted(loc: Loc) -> str:
    """`streams.dash[1]`; a key that is not a word is quoted, so that it cannot break the line."""
    parts = (
        f"[{part}]" if isinstance(part, int) else "." + (part if _WORD.fullmatch(part) else json.dumps(part))
        for part in loc
    )
    return "".join(parts).removeprefix(".")
