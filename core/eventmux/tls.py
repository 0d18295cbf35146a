"""The certificate and its key: whether they can be served with, told before anything is. No word of the password."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from .config import TlsConfig


class TlsError(Exception):
    """What is wrong, and with which key of `server.tls`."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def context_of(tls: TlsConfig, *, http2: bool = False) -> ssl.SSLContext:
    """How the server speaks TLS. Raises TlsError."""
    certificate, key = _certificate(tls), _public_key(tls)
    if _bytes_of(certificate) != _bytes_of(key):
        raise TlsError("key", f"{tls.key} is not the key of the certificate in {tls.cert}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    try:
        # Without a callback OpenSSL would ask for a password at the terminal.
        context.load_cert_chain(tls.cert, tls.key, lambda: _password(tls) or b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsError("cert", f"OpenSSL does not take it: {getattr(error, 'reason', None) or error}") from None
    return context


def _certificate(tls: TlsConfig) -> PublicKeyTypes:
    data = _read(tls.cert, "cert")
    try:
        return x509.load_pem_x509_certificates(data)[0].public_key()
    except Exception:  # noqa: BLE001 - cryptography has many ways to say it
        raise TlsError("cert", f"{tls.cert} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)") from None


def _public_key(tls: TlsConfig) -> PublicKeyTypes:
    data, password = _read(tls.key, "key"), _password(tls)
    try:
        try:
            return load_pem_private_key(data, password).public_key()
        except TypeError:  # a password where there must be none, or none where there must be one
            if not password:
                raise TlsError("key", f"{tls.key} is encrypted: set server.tls.password") from None
            return load_pem_private_key(data, None).public_key()
    except TlsError:
        raise
    except Exception:  # noqa: BLE001 - as above
        if password and b"ENCRYPTED" in data:
            raise TlsError("password", f"it does not open {tls.key}") from None
        raise TlsError("key", f"{tls.key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)") from None


def _password(tls: TlsConfig) -> bytes | None:
    return tls.password.get_secret_value().encode() or None if tls.password else None


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TlsError(key, f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _bytes_of(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
