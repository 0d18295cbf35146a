"""The keys of a JSON Web Key Set (RFC 7517), by URL or from a file: fetched off the loop, kept, and fetched again."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from .background import in_thread
from .errors import FullError

log = logging.getLogger("eventmux.auth")

MAX_BYTES = 1024 * 1024
MAX_KEYS = 100
TIMEOUT = 5.0  # seconds
FRESH = 300.0  # seconds after which the set is fetched again, in the background
PATIENCE = 10.0  # seconds between two fetches, however many tokens name keys that are not there

FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}  # an algorithm's first letters -> `kty`
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


class KeysUnavailableError(FullError):
    """The keys have not been had yet, so that no token can be told from another."""


class KeySet:
    """The keys at `url`, or in `file`. `find` is all that a request needs."""

    def __init__(self, place: str | Path) -> None:
        self._place = place
        self._keys: list[Mapping[str, Any]] = []
        self._made: dict[tuple[int, str], Any] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._is_failing = False

    async def find(self, kid: str | None, algorithm: str) -> list[Any]:
        """The keys that a token with this head may be signed with. Raises KeysUnavailableError."""
        now = time.monotonic()
        found = self._find(kid, algorithm)
        if not found and now >= self._tried + PATIENCE:
            self._fetch(now)
        elif now >= max(self._fetched + FRESH, self._tried + PATIENCE):
            self._fetch(now)  # who has a key does not wait for it
        if not found and self._fetching:
            await asyncio.shield(self._fetching)  # one who gives up does not take it from the others
            found = self._find(kid, algorithm)
        if not found and (self._is_failing or not self._keys):
            raise KeysUnavailableError("the keys that tokens are checked with cannot be had now: try again later")
        return found

    def _find(self, kid: str | None, algorithm: str) -> list[Any]:
        fitting = [key for key in self._keys if _fits(key, algorithm)]
        if kid is not None:
            fitting = [key for key in fitting if key.get("kid") == kid]
        return [found for key in fitting if (found := self._prepared(key, algorithm)) is not None]

    def _prepared(self, key: Mapping[str, Any], algorithm: str) -> Any:
        place = id(key), algorithm  # the keys stay as long as what is made of them
        if place not in self._made:
            self._made[place] = _key(key, algorithm)
        return self._made[place]

    def _fetch(self, now: float) -> None:
        if self._fetching is None:
            self._tried = now
            self._fetching = asyncio.create_task(self._refresh(), name="eventmux keys")

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(2 * TIMEOUT):  # a head that trickles keeps every single read within its own
                keys = await in_thread(lambda: read_keys(self._place), "eventmux keys")
        except (OSError, ValueError) as error:
            if not self._is_failing:
                why = str(error) or f"it takes longer than {2 * TIMEOUT:g} seconds"
                log.warning("keys from %s cannot be had, %d stay: %s", shown(self._place), len(self._keys), why)
            self._is_failing = True
        else:
            if self._is_failing:
                log.warning("keys from %s are there again", shown(self._place))
            self._is_failing = False
            self._keys, self._made, self._fetched = keys, {}, time.monotonic()
        finally:
            self._fetching = None

    async def close(self) -> None:
        if fetching := self._fetching:
            fetching.cancel()
            await asyncio.wait([fetching])


def read_keys(place: str | Path) -> list[Mapping[str, Any]]:
    """Raises OSError for what cannot be read, and ValueError for what is no key set."""
    text = _load(place) if isinstance(place, Path) else _download(place)
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError('it is no JSON Web Key Set: {"keys": [...]}') from None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise ValueError(f"its keys are no list, or more than {MAX_KEYS}")
    usable: list[Mapping[str, Any]] = [
        key for key in keys if isinstance(key, dict) and key.get("kty") in FAMILIES.values()
    ]
    if not usable:
        raise ValueError("it holds no public key of the type RSA, EC or OKP")
    return usable


def shown(place: str | Path) -> str:
    """Without what may be secret in a URL."""
    if isinstance(place, Path):
        return str(place)
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _load(file: Path) -> bytes:
    with file.open("rb") as opened:
        return _bounded(opened.read(MAX_BYTES + 1))


def _bounded(text: bytes) -> bytes:
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    return text


def _download(url: str) -> bytes:
    """Without redirects, and by HTTP only: what answers must be what was configured."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - the opener knows HTTP only
    ends = time.monotonic() + TIMEOUT
    text = b""
    try:
        with _opener().open(request, timeout=TIMEOUT) as answer:
            while part := answer.read1(MAX_BYTES + 1):
                text = _bounded(text + part)
                if time.monotonic() > ends:
                    raise TimeoutError(f"it takes longer than {TIMEOUT:g} seconds")
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"it answers {error.code}") from None
    except http.client.HTTPException as error:
        raise OSError(f"it does not speak HTTP: {type(error).__name__}") from error
    return text


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    """Whether the key says that it may be used so. One without words of its own may, if it is of the right type."""
    operations = key.get("key_ops")
    return (
        key.get("kty") == FAMILIES.get(algorithm[:2])
        and key.get("crv") == CURVES.get(algorithm)
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
    )


def _key(key: Mapping[str, Any], algorithm: str) -> Any:
    """None for one that cannot be read: it does not keep others from being used."""
    public = {name: value for name, value in key.items() if name != "d"}  # a private key serves as its public one
    try:
        return jwt.PyJWK(public, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
