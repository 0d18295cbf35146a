"""What is wrong with the `auth` section by its meaning; its types are checked before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import jwt

from .authority import place_of
from .config import AuthConfig, Granted, JwtConfig
from .document import Loc
from .errors import suggestion
from .jwks import read_keys

Fault = tuple[Loc, str]


def faults(
    auth: AuthConfig, names: Collection[str], streams: Collection[str], directory: Path, *, is_hooked: bool
) -> Iterator[Fault]:
    """`names`: of the enabled sources. `is_hooked`: whether a plugin has a way of its own."""
    if not (auth.tokens or auth.jwt or auth.anonymous or is_hooked):
        yield (), "it lets nobody in: add tokens, jwt or anonymous, or a plugin with the hook authenticate"
    yield from _twice(auth)
    for index, token in enumerate(auth.tokens):
        yield from _names(("tokens", index), token, names, streams)
        if not token.name.isprintable():
            yield ("tokens", index, "name"), "it has letters that cannot be shown: write it without"
    if auth.anonymous:
        yield from _names(("anonymous",), auth.anonymous, names, streams)
    if auth.jwt:
        yield from _web_tokens(auth.jwt, directory)


def _twice(auth: AuthConfig) -> Iterator[Fault]:
    """Two tokens of one name would read each other's private runs, and of one value only one could be meant."""
    tokens: dict[str, int] = {}
    named: dict[str, int] = {}
    for index, token in enumerate(auth.tokens):
        if (first := named.setdefault(token.name, index)) != index:
            yield ("tokens", index, "name"), f"the name of tokens[{first}], too: give each its own"
        if (first := tokens.setdefault(token.token.get_secret_value(), index)) != index:
            yield ("tokens", index, "token"), f"the same as that of {auth.tokens[first].name!r}: give each its own"


def _names(loc: Loc, granted: Granted, names: Collection[str], streams: Collection[str]) -> Iterator[Fault]:
    """A pattern may be there for sources that are still to come; a name that no source has is a mistake."""
    for key in ("read", "publish"):
        for index, pattern in enumerate(getattr(granted, key)):
            if not set(pattern) & set("*?") and pattern not in names:
                why = f"{pattern!r} is a stream: name its sources" if pattern in streams else ""
                yield (*loc, key, index), why or f"no source {pattern!r}{suggestion(pattern, names)}"


def _web_tokens(config: JwtConfig, directory: Path) -> Iterator[Fault]:
    loc = ("jwt",)
    if (config.key is None) == (config.jwks is None):
        yield loc, "give exactly one of key and jwks"
    elif config.key is not None:
        secret = config.key.get_secret_value()
        reasons = dict.fromkeys(_why_not(secret, name) for name in config.algorithms)
        yield from (((*loc, "key"), reason) for reason in reasons if reason)
    else:
        yield from _key_set(config, directory)


def _why_not(secret: str, name: str) -> str | None:
    """Why tokens of this algorithm cannot be checked with the key."""
    algorithm = jwt.get_algorithm_by_name(name)
    if name.startswith("HS"):
        size = int(name[2:]) // 8
        if len(secret.encode()) < size:
            return f"{name} needs a secret of at least {size} bytes (RFC 7518, 3.2): make a longer one"
    try:
        key = algorithm.prepare_key(secret)
    except (jwt.PyJWTError, ValueError, TypeError):
        kind = "a secret, not a public key" if name.startswith("HS") else "a public key of that kind, in PEM"
        return f"{name} cannot be checked with it: give {kind}, and algorithms that go with it"
    if hasattr(key, "private_bytes"):
        return "it is a private key: give the public one, which is all that a check needs"
    return algorithm.check_key_length(key)


def _key_set(config: JwtConfig, directory: Path) -> Iterator[Fault]:
    if secret := [name for name in config.algorithms if name.startswith("HS")]:
        text = f"{secret[0]} has a secret, and a key set is public: write it as key, or leave it out"
        yield ("jwt", "algorithms"), text
    place = place_of(config.jwks or "", directory)
    if isinstance(place, Path):
        try:
            read_keys(place)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            yield ("jwt", "jwks"), f"the key set cannot be used: {why}"
        return
    try:
        parts = urlsplit(place)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        yield ("jwt", "jwks"), "no URL that can be fetched: write https://host/path, or the name of a file"
