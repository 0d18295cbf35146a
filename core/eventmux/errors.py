"""What is raised on purpose, and the status it becomes before the first byte of a stream."""

from __future__ import annotations

from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


MAX_FAULTS = 20  # faults of one request that are told; the next one is told when these are mended
MAX_SHOWN = 100  # characters of somebody's text that an error repeats

# Why a request for a stream gets none. Each is counted under one of these names.
Refusal = Literal[
    "full",
    "rate",
    "draining",
    "unauthorized",
    "forbidden",
    "not_found",
    "invalid",
    "too_large",
    "unavailable",
    "store",
    "failed",
]


class EventmuxError(Exception):
    """Base of every error raised on purpose; its text may be shown to the person who caused it, but see `told`.

    `headers`: what its response has beside the text.
    """

    status = 500
    headers: Mapping[str, str] = MappingProxyType({})
    refusal: ClassVar[Refusal] = "failed"

    @property
    def told(self) -> str:
        """What a client is told of it."""
        return str(self)


class DefinitionError(EventmuxError):
    """A plugin's source or event is not defined as it must be. Raised when the plugin is imported."""


class UndeclaredEventError(EventmuxError):
    """A source yielded what its return annotation does not name."""


class ConfigError(EventmuxError):
    """`plugins.yaml` cannot be used. `problems` holds one line per fault, each with its place."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class NoDirectoryError(EventmuxError):
    """There is no place for the sockets by which workers ask each other."""


class UnknownSourceError(EventmuxError):
    """A request names a source or stream that is not enabled."""

    status = 404
    refusal = "not_found"

    def __init__(self, name: str, known: Iterable[str], *, is_stream: bool = False) -> None:
        shown = name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "..."
        remedy = f": it is a stream, GET /sse/{name}" if is_stream else suggestion(name, known)
        super().__init__(f"no source {'' if is_stream else 'or stream '}{shown!r}{remedy}")


class TakesNothingError(EventmuxError):
    """An event is published to a source that takes none."""

    status = 404


def _challenge(code: str) -> Mapping[str, str]:
    """RFC 6750, 3. A request without credentials is not told an error."""
    error = f', error="{code}"' if code else ""
    return MappingProxyType({"WWW-Authenticate": f'Bearer realm="eventmux"{error}', "Cache-Control": "no-store"})


class ChallengeError(EventmuxError):
    """A request is refused for who sends it. Its text says the remedy, and never the token."""


class CredentialsError(ChallengeError):
    """A request brings no credentials, and must."""

    status = 401
    headers = _challenge("")
    refusal = "unauthorized"


class AuthenticationError(ChallengeError):
    """The credentials of a request are not valid. A plugin's `authenticate` raises it, and its text is shown."""

    status = 401
    headers = _challenge("invalid_token")
    refusal = "unauthorized"


class AmbiguousCredentialsError(ChallengeError):
    """A request brings credentials in more than one way (RFC 6750, 2)."""

    status = 400
    headers = _challenge("invalid_request")
    refusal = "invalid"


class ForbiddenError(ChallengeError):
    """Whoever sends the request is known, and may not."""

    status = 403
    headers = _challenge("insufficient_scope")
    refusal = "forbidden"


class UnavailableError(EventmuxError):
    """A source is enabled and cannot run; the text says why and what to do."""

    status = 503
    refusal = "unavailable"


class PluginError(EventmuxError):
    """A plugin has failed where it should have given an answer; the log says how."""


class FullError(EventmuxError):
    """There is no room now. An EventSource is not told so by a status, on which it would stop for ever."""

    status = 503
    headers = MappingProxyType({"Retry-After": "10"})
    refusal: ClassVar[Refusal] = "full"


class TooOftenError(FullError):
    """There is room, but not for so many at once."""

    refusal = "rate"


class DrainingError(FullError):
    """There is no room any more: the service goes down."""

    refusal = "draining"


class StoreAwayError(FullError):
    """The store cannot be asked, or did not answer in time; what it was asked for may have been done or not."""

    refusal = "store"

    @property
    def told(self) -> str:
        """Its text has addresses of ours: it is for operators, and in the log."""
        return "the store is away: try again"


class TooLargeError(EventmuxError):
    """A request body is over the bound."""

    status = 413
    # Whoever sends too much is not read to the end: the connection is closed on them.
    headers = MappingProxyType({"connection": "close"})
    refusal = "too_large"


class MediaTypeError(EventmuxError):
    """A request body is not sent as JSON."""

    status = 415
    refusal = "invalid"


class SourceError(Exception):
    """Raised by a source to fail with a message that clients may see.

    `retryable` tells the client whether asking again can help. Any other exception that leaves a source is
    logged under an incident id, and only that id is sent.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = str(message)
        self.retryable = bool(retryable)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error text: the nearest of the known names, or all of them."""
    names = sorted(known)
    if near := get_close_matches(name, names, n=1):
        return f": did you mean {near[0]!r}?"
    return f": known are {', '.join(names)}" if names else ": none is known"
