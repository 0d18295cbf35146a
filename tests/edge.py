"""nginx and Caddy in front of a service, configured by the files of docs/deployment: only ports, paths and the
certificate are put in.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eventsource import PATIENCE, EventSource, wait_until
from restart import free_port

DEPLOYMENT = Path(__file__).parents[1] / "docs" / "deployment"

NGINX = """
daemon off;
{user}
pid {path}/nginx.pid;
error_log {path}/error.log notice;
worker_processes 2;
worker_rlimit_nofile 4096;
{main}
events {{ worker_connections 2048; }}
http {{
    access_log {path}/access.log;
    client_body_temp_path {path}/body;
    proxy_temp_path {path}/proxy;
    fastcgi_temp_path {path}/fastcgi;
    uwsgi_temp_path {path}/uwsgi;
    scgi_temp_path {path}/scgi;
    include {path}/eventmux.conf;
}}
"""

CADDY = """
{
	admin off
	auto_https disable_redirects
}
"""


class Edge:
    """A proxy as a process. `url` is where clients find it."""

    def __init__(self, command: list[str], path: Path, port: int, trust: ssl.SSLContext) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.trust = trust
        self.certificate = path / "cert.pem"
        self.log = path / "edge.log"
        self._command = command
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = {**os.environ, "HOME": str(self._path), "XDG_DATA_HOME": str(self._path)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._path, env=environ)
        process = self._process

        def answers() -> bool:
            assert process.poll() is None, self.log.read_text()
            try:
                return self.get("/healthz") is not None
            except httpx2.TransportError:
                return False

        wait_until(answers, "the proxy to answer")

    def reload(self) -> None:
        subprocess.run([*self._command, "-s", "reload"], check=True, timeout=PATIENCE, capture_output=True)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        if self._process:
            self._process.send_signal(sig)
            self._process.wait(PATIENCE)
            self._process = None

    def get(self, path: str, *, http2: bool = True, **options: object) -> httpx2.Response:
        with self.client(http2=http2) as client:
            return client.get(self.url + path, **options)  # type: ignore[arg-type]

    def post(self, path: str, *, http2: bool = True, **options: object) -> httpx2.Response:
        with self.client(http2=http2) as client:
            return client.post(self.url + path, **options)  # type: ignore[arg-type]

    def client(self, *, http2: bool = True, **options: object) -> httpx2.Client:
        return httpx2.Client(http2=http2, verify=self.trust, timeout=PATIENCE, trust_env=False, **options)  # type: ignore[arg-type]

    def open(self, path: str, *, http2: bool = True, **options: object) -> EventSource:
        return EventSource(self.url + path, client={"http2": http2, "verify": self.trust}, **options)  # type: ignore[arg-type]


def replaced(text: str, values: Mapping[str, object]) -> str:
    """`text` with each key, which must stand in it, replaced."""
    for key, value in values.items():
        assert key in text, key
        text = text.replace(key, str(value))
    return text


@contextlib.contextmanager
def nginx(service: str, path: Path, *, main: str = "") -> Iterator[Edge]:
    """In front of the service at the URL `service`. `main`: more for the main part of its configuration."""
    port = free_port()
    cert, key, trust = certificate(path)
    text = replaced(
        (DEPLOYMENT / "nginx.conf").read_text("utf-8"),
        {
            "127.0.0.1:8000": service.removeprefix("http://"),
            "listen 443": f"listen 127.0.0.1:{port}",
            "listen [::]:443": f"listen 127.0.0.1:{free_port()}",
            "listen 80": f"listen 127.0.0.1:{free_port()}",
            "listen [::]:80": f"listen 127.0.0.1:{free_port()}",
            "/etc/ssl/events.example.com/fullchain.pem": cert,
            "/etc/ssl/events.example.com/key.pem": key,
        },
    )
    (path / "eventmux.conf").write_text(text, "utf-8")
    user = "user root;" if os.geteuid() == 0 else ""
    file = path / "nginx.conf"
    file.write_text(NGINX.format(path=path, user=user, main=main), "utf-8")
    with _running(
        Edge(["nginx", "-p", str(path), "-c", str(file), "-e", str(path / "error.log")], path, port, trust)
    ) as edge:
        yield edge


@contextlib.contextmanager
def caddy(service: str, path: Path) -> Iterator[Edge]:
    port = free_port()
    cert, key, trust = certificate(path)
    text = replaced(
        (DEPLOYMENT / "Caddyfile").read_text("utf-8"),
        {
            "127.0.0.1:8000": service.removeprefix("http://"),
            "events.example.com {": f"https://127.0.0.1:{port} {{\n\ttls {cert} {key}",
        },
    )
    file = path / "Caddyfile"
    file.write_text(CADDY + text, "utf-8")
    with _running(Edge(["caddy", "run", "--adapter", "caddyfile", "--config", str(file)], path, port, trust)) as edge:
        yield edge


@contextlib.contextmanager
def _running(edge: Edge) -> Iterator[Edge]:
    try:
        edge.start()
        yield edge
    finally:
        edge.stop()


def certificate(path: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """Certificate and key for 127.0.0.1, and who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, secret = path / "cert.pem", path / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, secret, ssl.create_default_context(cafile=str(cert))
