"""The URL of a Redis: what may stand in it, and what of it may be shown. No client is made here.

It is read as redis-py's `from_url` reads it, but nothing in it is passed over: redis-py takes a database that is no
number for 0, and a host that is missing for localhost.
"""

from __future__ import annotations

from urllib.parse import ParseResult, parse_qs, urlparse

LIKE = "redis://host:6379/0, rediss://host:6380/0 (TLS) or unix:///run/redis.sock?db=0"
SCHEMES = ("redis", "rediss", "unix")
# Of the query; redis-py hands any other word on, and fails when it connects.
_WORDS = frozenset({"db", "username", "password", "client_name"})
_TLS_WORDS = frozenset(
    {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs", "ssl_check_hostname"}
)
_ENCODE = "in a user or a password write / as %2F, ? as %3F, # as %23, @ as %40, % as %25"


def is_redis(url: str) -> bool:
    """Whether it begins like one."""
    return url.partition("://")[0] in SCHEMES and "://" in url


def check_redis_url(url: str) -> None:
    """Raises ValueError for what is wrong with it, in words that hold nothing of it but the names of its parts."""
    if not is_redis(url):
        raise ValueError(f"the URL of a Redis is expected: {LIKE}")
    if any(letter <= " " for letter in url):
        raise ValueError("a URL has no blanks and no line ends: write them as %20 and so on")
    parts = _parts(url)
    if parts.fragment or "#" in url:
        raise ValueError(f"a '#' ends the URL: {_ENCODE}")
    words = parse_qs(parts.query, keep_blank_values=True)
    allowed = _WORDS | (_TLS_WORDS if parts.scheme == "rediss" else frozenset())
    if not words.keys() <= allowed:
        raise ValueError(f"behind the '?' only these are allowed: {', '.join(sorted(allowed))}")
    if any(not _is_number(value) for value in words.get("db", ())):
        raise ValueError("db: the number of a database is expected, like ?db=0")
    if parts.scheme == "unix":
        _check_socket(parts)
    else:
        _check_address(parts)


def without_credentials(url: str) -> str:
    """What of a valid URL may stand in a log: scheme, host, port and database."""
    parts = _parts(url)
    db = parse_qs(parts.query).get("db", [parts.path.strip("/") or "0"])[0]
    if parts.scheme == "unix":
        return f"unix://{parts.path}?db={parse_qs(parts.query).get('db', ['0'])[0]}"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port or 6379}/{db}"


def _parts(url: str) -> ParseResult:
    try:
        return urlparse(url)
    except ValueError:  # whose text may hold a part of the URL
        raise ValueError(f"this is no URL: {LIKE} is expected; {_ENCODE}") from None


def _check_socket(parts: ParseResult) -> None:
    if parts.netloc.rpartition("@")[2]:
        raise ValueError("the path of a socket begins with a third slash: unix:///run/redis.sock")
    if not parts.path.strip("/"):
        raise ValueError("the path of a socket is expected: unix:///run/redis.sock")


def _check_address(parts: ParseResult) -> None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"the port is a number from 1 to 65535; {_ENCODE}")
    if not parts.hostname:
        raise ValueError(f"there is no host: {LIKE} is expected; {_ENCODE}")
    if parts.path not in ("", "/") and not _is_number(parts.path[1:]):
        raise ValueError(f"behind the host only the number of a database is allowed, like /0; {_ENCODE}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10  # noqa: PLR2004 - Redis has a 32-bit number for it
