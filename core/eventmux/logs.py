"""What a line of the log looks like, as text or as JSON. For the command: a library does not say how logs are written.

What a client has sent may stand in a message, in a field or in an exception. It can neither begin a line nor reach a
terminal's controls.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

Kind = Literal["text", "json"]

# What logging itself puts in a record, and uvicorn's second form of each message, with colours.
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
_PLAIN = re.compile(r"[^\s\"'=\\]+")
_INDENT = "    "


class TextFormatter(logging.Formatter):
    """`time level logger: message key=value ...`; a traceback follows in lines of its own, each of them indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {printable(_bare(key))}={_bare(value)}" for key, value in _extra(record).items())
        message = printable(_message(record))
        line = f"{_time(record)} {record.levelname:<7} {printable(record.name)}: {message}{fields}"
        rest = [text for text in (_exception(self, record), record.stack_info) if text]
        # Only LF ends a line here: str.splitlines would let a text break it by other means.
        return "\n".join([line, *(_INDENT + printable(part) for text in rest for part in text.rstrip().split("\n"))])


class JsonFormatter(logging.Formatter):
    """One object per line, ASCII only: time, level, logger, message, every field of `extra`, exception and stack."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        rest = {"exception": _exception(self, record), "stack": record.stack_info}
        taken = told.keys() | rest.keys()
        told |= {f"{key}_" if key in taken else key: value for key, value in _extra(record).items()}
        return _json(told | {key: text for key, text in rest.items() if text})


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def configure(kind: Kind = "text", worker: int | None = None) -> None:
    """Write the log of the process to standard error. Where somebody has said how, only a kind of ours is changed.

    `worker`: which of several processes this is, as a field of each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[kind]())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for one in logging.getLogger().handlers:
        if isinstance(one.formatter, (TextFormatter, JsonFormatter)):
            one.setFormatter(FORMATTERS[kind]())
            if worker is not None:
                one.addFilter(_of_worker(worker))


def _of_worker(number: int) -> Callable[[logging.LogRecord], bool]:
    def say(record: logging.LogRecord) -> bool:
        record.worker = number
        return True

    return say


def printable(text: str) -> str:
    """`text` with everything escaped that is no visible character or space: controls, line ends, marks of direction."""
    if text.isprintable():
        return text
    return "".join([letter if letter.isprintable() else _escaped(letter) for letter in text])


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a plugin's arguments do not fit its message: that must not hide it
        return f"{record.msg!s} {record.args!r:.500} (not formatted: {error})"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {str(key): value for key, value in vars(record).items() if key not in _OWN}


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else record.exc_text or ""


def _bare(value: Any) -> str:
    """A field's value as it stands in a line: quoted where it would not be one word."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    text = value if isinstance(value, str) else _text(value)
    if text != "-" and text.isprintable() and _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever an object is: a line must not be lost for it
        return f"<{type(value).__name__}>"


def _json(told: dict[str, Any]) -> str:
    try:
        return json.dumps(told, default=_text, allow_nan=False)
    except (TypeError, ValueError):  # a NaN, a key that is no text, or something that contains itself
        return json.dumps({key: value if isinstance(value, str) else _text(value) for key, value in told.items()})
