"""Tokens made into principals, by what plugins.yaml says of them. Where in a request they stand is not said here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
from pydantic import ValidationError

from .access import MAX_PRINCIPAL, NOBODY, Principal
from .config import AuthConfig, Granted, JwtConfig
from .cursor import MARK
from .errors import AuthenticationError
from .jwks import KeySet

MAX_TOKEN = 16 * 1024  # letters of one that is looked at
INVALID = "the token is not valid: bring one that is"


class Authority:
    """Knows static tokens and JSON Web Tokens. `directory`: to which the file of a key set is relative."""

    def __init__(self, config: AuthConfig, directory: Path, before: Authority | None = None) -> None:
        """`before`: what there was until now. Keys that it has fetched stay."""
        self.config = config
        self._tokens = [(digest(token.token.get_secret_value()), _bearer(token.name, token)) for token in config.tokens]
        self.web_tokens: WebTokens | None
        if before and before.config.jwt == config.jwt:
            self.web_tokens = before.web_tokens
        else:
            self.web_tokens = WebTokens(config.jwt, directory) if config.jwt else None
        granted = config.anonymous
        self.anonymous = (
            replace(NOBODY, name="anonymous", read=granted.read, publish=granted.publish) if granted else None
        )

    async def principal(self, token: str) -> Principal:
        """Whose token it is. Raises AuthenticationError, and KeysUnavailableError where that cannot be known now."""
        if found := self._static(digest(token)):
            return found
        if self.web_tokens is None or len(token) > MAX_TOKEN:
            raise AuthenticationError(INVALID)
        return await self.web_tokens.principal(token)

    def credential(self, principal: Principal, token: str) -> bytes:
        """What is kept of the token by which the principal has proved itself, for `renewed`. A JSON Web Token is not
        kept, but the rules by which it was believed are.
        """
        return self.web_tokens.rules if principal.scheme == "jwt" and self.web_tokens else digest(token)

    def renewed(self, principal: Principal, credential: bytes) -> Principal | None:
        """The principal as it is now, of which this was kept; None if what it proved itself by is good no more."""
        if principal.scheme == "token":
            return self._static(credential)
        return principal if self.web_tokens and hmac.compare_digest(self.web_tokens.rules, credential) else None

    def successor(self, principal: Principal, before: Authority) -> Principal | None:
        """The principal as it is now, which `before` knew; None if what it proved itself by is good no more, or if that
        cannot be told: a JSON Web Token is not kept, and under other rules it must be shown again.
        """
        if principal.scheme == "token":
            known = next((one for one, bearer in before._tokens if bearer.name == principal.name), None)
            return None if known is None else self._static(known)
        return principal if self.config.jwt is not None and self.config.jwt == before.config.jwt else None

    def _static(self, given: bytes) -> Principal | None:
        """All are compared, and digests, so that the time tells nothing of any token."""
        found = None
        for known, principal in self._tokens:
            if hmac.compare_digest(known, given):
                found = principal
        return found

    async def close(self) -> None:
        if self.web_tokens:
            await self.web_tokens.close()


class WebTokens:
    """JSON Web Tokens as a `JwtConfig` believes them. `rules`: its digest, the same in every process."""

    def __init__(self, config: JwtConfig, directory: Path) -> None:
        self._config = config
        self.rules = digest(config.model_dump_json() + (config.key.get_secret_value() if config.key else ""))
        # One key for all its algorithms: each of them has been tried with it before this configuration was taken.
        first = jwt.get_algorithm_by_name(config.algorithms[0])
        self._key = first.prepare_key(config.key.get_secret_value()) if config.key else None
        self._keys = KeySet(place_of(config.jwks, directory)) if config.jwks else None
        self._decoder = jwt.PyJWT({"enforce_minimum_key_length": True})

    async def principal(self, token: str) -> Principal:
        try:
            keys = await self._named(token, self._keys) if self._keys else [self._key]
            return self._principal(token, self._claims(token, keys))
        except jwt.ExpiredSignatureError:
            raise AuthenticationError("the token has expired: bring a new one") from None
        except jwt.ImmatureSignatureError:
            raise AuthenticationError("the token is not valid yet: bring one that is") from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError):
            raise AuthenticationError("the token is of another issuer, or for another audience") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise AuthenticationError(INVALID) from None

    async def _named(self, token: str, keys: KeySet) -> Sequence[Any]:
        """The keys that the token's head asks for; it is believed when the signature is."""
        head = jwt.get_unverified_header(token)
        if head.get("alg") not in self._config.algorithms:
            raise AuthenticationError(INVALID)
        return await keys.find(head.get("kid"), head["alg"])

    def _claims(self, token: str, keys: Sequence[Any]) -> Mapping[str, Any]:
        """Of several keys without a name in the token, the one that fits decides."""
        config = self._config
        for key in keys:
            try:
                return self._decoder.decode(
                    token,
                    key,
                    algorithms=list(config.algorithms),
                    audience=config.audience,
                    issuer=config.issuer,
                    leeway=config.leeway,
                )
            except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
                continue
        raise AuthenticationError(INVALID)

    def _principal(self, token: str, claims: Mapping[str, Any]) -> Principal:
        try:
            granted = Granted.model_validate(claims.get("eventmux", {}), strict=True)
        except ValidationError:
            raise AuthenticationError(
                'the token\'s claim \'eventmux\' is not {"read": [...], "publish": [...]} with names or patterns'
            ) from None
        name = claims.get("sub") or f"~{digest(token).hex()[:32]}"  # private runs belong to its bearer all the same
        if len(name) > MAX_PRINCIPAL:
            raise AuthenticationError(f"the token's 'sub' has more than {MAX_PRINCIPAL} letters")
        expires = int(claims["exp"]) + self._config.leeway if "exp" in claims else None
        return Principal(name, "jwt", granted.read, granted.publish, expires, MARK)

    async def close(self) -> None:
        if self._keys:
            await self._keys.close()


def _bearer(name: str, granted: Granted) -> Principal:
    return Principal(name, "token", granted.read, granted.publish, mark=MARK)


def place_of(jwks: str, directory: Path) -> str | Path:
    return jwks if "://" in jwks else directory / jwks


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
