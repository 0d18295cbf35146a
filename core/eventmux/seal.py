"""What a ticket stands for, as bytes that say nothing to who has not the ticket.

The store has no text of a ticket, only a digest of it. What lies there is encrypted by a key that is made of the text:
who reads the store, or a copy of it, learns neither who has tickets, nor a digest of a token to try guesses on, nor
what lets a stream in again; and who writes to it cannot change what a ticket that he does not have is good for.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .access import Principal
from .errors import PluginError
from .tickets import Grant

MAX_BYTES = 16 * 1024  # as the largest JSON Web Token; a principal of a plugin might have more patterns than that
_NONCE = 12  # bytes, new each time: no two seals of one ticket are equal
_FORM = b"eventmux ticket 1"  # what was sealed in another form is not valid


@dataclass(frozen=True, slots=True)
class Sealed:
    """A ticket in a store. Unused, it is good `until` then, in seconds since 1970."""

    grant: Grant
    until: float
    is_used: bool = False

    def lets_in(self, proof: str | None) -> bool:
        return self.grant.lets_in(proof, is_used=self.is_used)


def seal(text: str, content: Sealed) -> bytes:
    """Raises PluginError for a principal that is too large."""
    grant, principal = content.grant, content.grant.principal
    is_looked_up = principal.scheme == "token"  # what such a one may do the settings of each replica know
    words = {
        "name": principal.name,
        "scheme": principal.scheme,
        "read": () if is_looked_up else principal.read,
        "publish": () if is_looked_up else principal.publish,
        "expires": principal.expires,
        "credential": grant.credential.hex(),
        "proof": grant.proof,
        "until": content.until,
        "is_used": content.is_used,
    }
    data = json.dumps(words, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise PluginError(f"what {principal.name!r} may do is too long for a ticket: use fewer patterns, with *")
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(_key(text)).encrypt(nonce, data, _FORM)


def unseal(text: str, value: bytes) -> Sealed | None:
    """None for what was not sealed by this text, or in another form."""
    try:
        words = json.loads(AESGCM(_key(text)).decrypt(value[:_NONCE], value[_NONCE:], _FORM))
    except (InvalidTag, ValueError):
        return None
    principal = Principal(words["name"], words["scheme"], words["read"], words["publish"], words["expires"])
    grant = Grant(principal, bytes.fromhex(words["credential"]), words["proof"])
    return Sealed(grant, words["until"], words["is_used"])


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"eventmux seal").digest()
