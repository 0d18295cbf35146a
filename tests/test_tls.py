"""The service over TLS: streams on both paths, resume, what is wrong with its files, and who does not speak it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from certificates import make_certificate, trusting
from eventmux.cli import main
from eventmux.config import ServerConfig, TlsConfig
from eventsource import PATIENCE, wait_until
from raw import LOOPS, Feed, Raw, numbers, running
from service import serve_process, settings_of
from whatwg import Parser

OPEN, RIGHT = "open sesame", "right-secret"  # passwords of keys

both_loops = pytest.mark.parametrize("loop", LOOPS)
both_paths = pytest.mark.parametrize("direct", [True, False], ids=["direct", "portable"])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


def server(files: tuple[Path, Path], **options: Any) -> ServerConfig:
    return ServerConfig(tls=TlsConfig(cert=files[0], key=files[1]), **options)


@both_loops
@both_paths
def test_streams_flow_and_resume_over_tls(loop: str, files: tuple[Path, Path], *, direct: bool) -> None:
    feed = Feed(linger=30)
    settings = settings_of(feed.source, server=server(files, direct=direct))
    with (
        running(settings, loop=loop, expect_quiet=False) as service,
        Raw(service, tls=trusting(files[0])) as client,
    ):
        client.ask("/sse/feed?limit=3")
        wait_until(lambda: service.hub.subscriptions == 1)
        wait_until(lambda: len(service.outlets) == direct)
        feed.note(1, 2, text="x" * 200_000)
        feed.note(3)
        first = client.answer()
        assert numbers(first.events) == [1, 2, 3]
        feed.note(4, 5)
        second = [event.id for event in first.events if event.event == "note"][1]
        client.ask("/sse/feed?limit=2", f"Last-Event-ID: {second}")  # on the same connection
        assert numbers(client.answer().events) == [3, 4]


@both_loops
@both_paths
def test_a_client_that_takes_nothing_over_tls_is_cut_off(loop: str, files: tuple[Path, Path], *, direct: bool) -> None:
    feed = Feed()
    settings = settings_of(feed.source, server=server(files, direct=direct, send_timeout=0.5))
    with (
        running(settings, loop=loop) as service,
        Raw(service, tls=trusting(files[0]), buffer=4_096) as stalled,
        Raw(service, tls=trusting(files[0])) as reader,
    ):
        for client in (stalled, reader):
            client.ask("/sse/feed")
            client.head()
        wait_until(lambda: service.hub.subscriptions == 2)

        def fed() -> bool:
            feed.note(1, text="x" * 100_000)
            reader.until(b"event: note")
            return service.hub.subscriptions == 1

        wait_until(fed, "the one that takes nothing to be cut off")


def test_serve_prints_https_urls_and_speaks_tls_from_1_2_on(tmp_path: Path) -> None:
    cert, _ = make_certificate(tmp_path, password=OPEN)
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "plugins.yaml"
    file.write_text('server: {tls: {cert: ../tls.crt, key: ../tls.key, password: "${P}"}}\n')
    with serve_process("--config", str(file), cwd=tmp_path, environ={"P": "open sesame"}) as process:
        url = process.wait_for_url()
        assert url.startswith("https://127.0.0.1:")
        assert f"{url}/sse/clock" in process.log.read_text()
        assert "open sesame" not in process.log.read_text()
        port = int(url.rpartition(":")[2])
        with httpx2.Client(verify=trusting(cert), trust_env=False) as client:
            assert client.get(f"{url}/readyz").json()["status"] == "ready"
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(cert)
            context.minimum_version = context.maximum_version = version
            with Raw(port=port, tls=context) as raw:
                raw.ask("/healthz")
                assert raw.answer().status == 200
        context = trusting(cert)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            Raw(port=port, tls=context)
        with httpx2.stream("GET", f"{url}/sse/clock", verify=trusting(cert), trust_env=False) as response:
            parts = response.iter_raw()
            parser = Parser()
            while parser.retry is None:
                list(parser.feed(next(parts)))
            parser.retry = None
            process.process.terminate()
            for part in parts:
                list(parser.feed(part))
            assert parser.retry is not None
        assert process.process.wait(PATIENCE) == 0
        assert "Traceback" not in process.log.read_text()


NOISE = [
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x00\x05hello" * 20,
    b"\x00" * 5_000,
    bytes(range(256)) * 10,
]


@both_loops
def test_who_does_not_speak_tls_is_cut_off_without_a_traceback(
    loop: str, files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    feed = Feed()
    settings = settings_of(feed.source, server=server(files, request_timeout=0.5))
    with running(settings, loop=loop) as service, Raw(service, tls=trusting(files[0])) as reader:
        reader.ask("/sse/feed?limit=1")
        reader.head()
        for noise in NOISE:
            with Raw(service) as client:
                client.send(noise)
                with contextlib.suppress(ConnectionResetError):
                    client.rest()
        started = time.monotonic()
        with Raw(service) as silent:  # not even a handshake
            with contextlib.suppress(ConnectionResetError):
                silent.rest()
        assert time.monotonic() - started < 2
        hello = socket.create_connection(("127.0.0.1", service.port))
        hello.sendall(b"\x16\x03\x01\x02\x00\x01")  # and half a one
        hello.settimeout(PATIENCE)
        with hello, contextlib.suppress(ConnectionResetError):
            while hello.recv(1000):
                pass
        feed.note(1)
        assert b"".join(reader.chunks()).count(b"event: note") == 1
    assert [r.getMessage() for r in caplog.records if r.exc_info or r.levelname == "ERROR"] == []


# What is wrong with the files


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ({"cert": "no.crt", "key": "tls.key"}, "cert: cannot read {0}/no.crt: No such file or directory"),
        ({"cert": "tls.crt", "key": "no.key"}, "key: cannot read {0}/no.key: No such file or directory"),
        ({"cert": ".", "key": "tls.key"}, "cert: cannot read {0}: Is a directory"),
        (
            {"cert": "tls.key", "key": "tls.key"},
            "cert: {0}/tls.key holds no certificate in PEM (-----BEGIN CERTIFICATE-----)",
        ),
        (
            {"cert": "tls.crt", "key": "tls.crt"},
            "key: {0}/tls.crt holds no private key in PEM (-----BEGIN PRIVATE KEY-----)",
        ),
        (
            {"cert": "tls.crt", "key": "other.key"},
            "key: {0}/other.key is not the key of the certificate in {0}/tls.crt",
        ),
        ({"cert": "tls.crt", "key": "locked.key"}, "key: {0}/locked.key is encrypted: set server.tls.password"),
        (
            {"cert": "tls.crt", "key": "locked.key", "password": "wrong-secret"},
            "password: it does not open {0}/locked.key",
        ),
    ],
)
def test_what_is_wrong_with_the_files_is_told_with_its_place_before_anything_is_served(
    tmp_path: Path, command: str, tls: dict[str, str], expected: str
) -> None:
    make_certificate(tmp_path)
    make_certificate(tmp_path, "other")
    make_certificate(tmp_path, "locked", password=RIGHT)
    file = tmp_path / "plugins.yaml"
    lines = ["server:", "  tls:", *[f"    {key}: {json.dumps(value)}" for key, value in tls.items()]]
    file.write_text("\n".join(lines))
    where = expected.partition(":")[0]
    words = ["check", str(file)] if command == "check" else ["serve", "--config", str(file)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    line = lines.index(next(line for line in lines if line.startswith(f"    {where}:"))) + 1
    place = f"{file}:{line}:{7 + len(where)}"
    assert result.output.splitlines() == [f"{place}: server.tls.{expected.format(tmp_path)}"]
    assert "secret" not in result.output


def test_files_that_fit_are_no_fault_with_a_password_that_is_not_needed_too(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    make_certificate(tmp_path, "locked", password=RIGHT)
    for name, password in (("tls", ""), ("tls", "needless"), ("locked", "right-secret")):
        file = tmp_path / "plugins.yaml"
        file.write_text(
            json.dumps({"server": {"tls": {"cert": f"{name}.crt", "key": f"{name}.key", "password": password}}})
        )
        result = CliRunner().invoke(main, ["check", str(file)])
        assert (result.exit_code, result.output.count("no fault")) == (0, 1)


def test_http2_without_its_library_is_told(tmp_path: Path) -> None:
    (tmp_path / "plugins.yaml").write_text("server: {http2: true}")
    code = (
        "import sys; sys.modules['zttp'] = None\n"
        "from importlib import util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'zttp' else found(name, *rest)\n"
        "from eventmux.cli import main; main(['check'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "plugins.yaml:1:17: server.http2: zttp is not installed: pip install 'eventmux[http2]'"
    ]
