"""JSON Web Tokens: every family of algorithms, key sets that change, and tokens that are not what they say."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from credentials import LOCAL, bearer, challenge, cookie, serving
from eventmux import jwks
from eventmux.errors import ConfigError
from eventmux.settings import load_settings
from eventsource import wait_until
from service import Service

SECRET = "s" * 64
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
EC = {name: ec.generate_private_key(curve) for name, curve in CURVES.items()}
ED = ed25519.Ed25519PrivateKey.generate()
ASYMMETRIC: dict[str, Any] = {
    **{f"{family}{size}": RSA for family in ("RS", "PS") for size in (256, 384, 512)},
    **EC,
    "EdDSA": ED,
}
KEYS: dict[str, Any] = {**{f"HS{size}": SECRET for size in (256, 384, 512)}, **ASYMMETRIC}

CONFIG = """
sources: {open-clock: {}, mine: {}, secret: {}}
plugins: {dir: local}
auth:
  anonymous: {read: [open-clock]}
  jwt: %s
"""


def pem(key: Any) -> str:
    public = key.public_key()
    return str(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    )


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(next(name for name, known in KEYS.items() if type(known) is type(key)))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **({"kid": kid} if kid else {}), **more}


def token(key: Any, algorithm: str, *, kid: str | None = None, **claims: Any) -> str:
    claims = {"sub": "alice", "eventmux": {"read": ["mine", "open-*"]}, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else None)


def config(**words: Any) -> str:
    return CONFIG % json.dumps(words)


@contextlib.contextmanager
def guarded(path: Path, **words: Any) -> Iterator[Service]:
    with serving(config(**words), path, LOCAL) as service:
        yield service


def status(service: Service, text: str, path: str = "/sse/mine?limit=1") -> int:
    return service.get(path, headers=bearer(text)).status_code


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_every_algorithm_is_believed_with_its_key_and_with_no_other(tmp_path: Path, algorithm: str) -> None:
    key = KEYS[algorithm]
    others = {
        "HS": "t" * 64,
        "RS": OTHER_RSA,
        "PS": OTHER_RSA,
        "ES": ec.generate_private_key(CURVES.get(algorithm, ec.SECP256R1())),
        "Ed": ed25519.Ed25519PrivateKey.generate(),
    }
    with guarded(tmp_path, algorithms=[algorithm], key=key if isinstance(key, str) else pem(key)) as service:
        answer = service.get("/sse/mine?limit=1", headers=bearer(token(key, algorithm)))
        assert (200, True) == (answer.status_code, '"principal":"jwt:alice"' in answer.text)
        assert 403 == status(service, token(key, algorithm), "/sse/secret")
        assert 401 == status(service, token(others[algorithm[:2]], algorithm))
        assert 200 == service.get("/sse/mine?limit=1", headers=cookie(token(key, algorithm))).status_code


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_key_set_in_a_file_serves_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    keys = [jwk(OTHER_RSA, "other"), *(jwk(key, name) for name, key in {**EC, "rsa": RSA, "ed": ED}.items())]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    kid = {"RS": "rsa", "PS": "rsa", "Ed": "ed"}.get(algorithm[:2], algorithm)
    with guarded(tmp_path, algorithms=[algorithm], jwks="keys.json") as service:
        assert 200 == status(service, token(KEYS[algorithm], algorithm, kid=kid))
        assert 200 == status(service, token(KEYS[algorithm], algorithm)), "without a name all that fit are tried"
        assert 401 == status(service, token(KEYS[algorithm], algorithm, kid="other"))
        assert 401 == status(service, token(KEYS[algorithm], algorithm, kid="unknown"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("jwt")
    words = {"key": SECRET, "audience": ["eventmux", "events"], "issuer": "https://issuer", "leeway": 2}
    with guarded(path, algorithms=["HS256", "HS512"], **words) as service:
        yield service


def good(**claims: Any) -> str:
    return token(SECRET, "HS256", **{"aud": "events", "iss": "https://issuer", **claims})


NOW = time.time()


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, None),
        ({"aud": ["x", "eventmux"]}, None),
        ({"exp": NOW + 3600, "nbf": NOW - 10, "iat": NOW - 10}, None),
        ({"eventmux": {"read": ["*"], "publish": []}}, None),
        ({"aud": "others"}, "the token is of another issuer, or for another audience"),
        ({"aud": None}, "the token is of another issuer, or for another audience"),
        ({"iss": "https://evil"}, "the token is of another issuer, or for another audience"),
        ({"iss": None}, "the token is of another issuer, or for another audience"),
        ({"exp": NOW - 60}, "the token has expired: bring a new one"),
        ({"nbf": NOW + 3600}, "the token is not valid yet: bring one that is"),
        ({"exp": "soon"}, "the token is not valid: bring one that is"),
        ({"exp": 10**400}, "the token is not valid: bring one that is"),
        ({"sub": "a" * 129}, "the token's 'sub' has more than 128 letters"),
        ({"sub": "a\nb"}, "the token is not valid: bring one that is"),
        *(
            ({"eventmux": claim}, "the token's claim 'eventmux' is not")
            for claim in (
                ["mine"],
                "mine",
                {"read": "mine"},
                {"read": [1]},
                {"reed": []},
                {"read": ["Mine"]},
                {"read": ["a"] * 1001},
            )
        ),
    ],
)
def test_the_claims_of_a_token_are_checked(service: Service, claims: dict[str, Any], expected: str | None) -> None:
    answer = service.get("/sse/mine?limit=1", headers=bearer(good(**claims)))
    if expected is None:
        assert 200 == answer.status_code, answer.text
    else:
        assert (401, 'Bearer realm="eventmux", error="invalid_token"') == (answer.status_code, challenge(answer))
        assert answer.json()["detail"].startswith(expected)
        assert good(**claims) not in answer.text


def test_a_token_without_the_claim_is_somebody_who_may_nothing(service: Service) -> None:
    assert 403 == status(service, good(eventmux=None))
    assert [] == service.get("/sources", headers=bearer(good(eventmux=None))).json()["sources"]


def test_leeway_is_granted(service: Service) -> None:
    assert 200 == status(service, good(exp=time.time()))
    assert 401 == status(service, good(exp=time.time() - 4))


def test_what_is_signed_otherwise_is_not_believed(service: Service) -> None:
    def unsigned(algorithm: str) -> str:
        head, body, signature = good().split(".")
        head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).decode().rstrip("=")
        return f"{head}.{body}.{signature if algorithm != 'none' else ''}"

    assert 200 == status(service, good())
    for algorithm in ("none", "None", "HS384", "RS256", "", "HS999"):
        assert 401 == status(service, unsigned(algorithm))
        assert 401 == status(service, unsigned(algorithm), "/sse/open-clock"), "and it is not anonymous"
    head, body, signature = good().split(".")
    forged = base64.urlsafe_b64encode(json.dumps({"sub": "root", "eventmux": {"read": ["*"]}}).encode()).decode()
    for text in (f"{head}.{forged}.{signature}", f"{head}.{body}.", f"{head}.{body}", "a.b.c", "..", "x" * 20_000):
        assert 401 == status(service, text)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("by", ["key", "jwks"])
def test_a_public_key_is_no_secret(tmp_path: Path, algorithm: str, by: str) -> None:
    """The confusion of keys: HS256 with the public key's text as its secret."""
    key = KEYS[algorithm]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [jwk(key, "one")]}))
    words = {"key": pem(key)} if by == "key" else {"jwks": "keys.json"}
    with guarded(tmp_path, algorithms=[algorithm], **words) as service:
        assert 200 == status(service, token(key, algorithm, kid="one"))
        for secret in (pem(key), pem(key).strip(), json.dumps(jwk(key, "one"))):
            assert 401 == status(service, _hs256(secret))


def _hs256(secret: str) -> str:
    """PyJWT itself refuses to make one."""

    def part(value: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    text = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part({'sub': 'root', 'eventmux': {'read': ['*']}})}"
    signing = hmac.HMAC(secret.encode(), hashes.SHA256())
    signing.update(text.encode())
    return f"{text}.{base64.urlsafe_b64encode(signing.finalize()).decode().rstrip('=')}"


def test_without_a_sub_a_private_run_is_still_its_tokens(tmp_path: Path) -> None:
    with guarded(tmp_path, algorithms=["HS256"], key=SECRET) as service:
        first, second = (token(SECRET, "HS256", sub=None, jti=jti) for jti in "ab")
        with service.open("/sse/mine", headers=bearer(first)) as stream:
            events = stream.take(2)
        assert events[0].data["principal"].startswith("jwt:~")
        with service.open("/sse/mine", headers=bearer(second), cursor=events[-1].id) as stream:
            assert "stream.gap" == stream.take(1)[0].event
        with service.open("/sse/mine", headers=bearer(first), cursor=events[-1].id) as stream:
            assert 3 == stream.take(1)[0].data["n"]


def test_a_principal_knows_when_its_token_ends(tmp_path: Path) -> None:
    from eventmux.authority import Authority

    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "own.py").write_text(LOCAL)
    (tmp_path / "plugins.yaml").write_text(config(algorithms=["HS256"], key=SECRET, leeway=5))
    auth = load_settings(tmp_path / "plugins.yaml", {}).config.auth
    assert auth
    coroutine = Authority(auth, tmp_path).principal(token(SECRET, "HS256", exp=4_000_000_000))
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert 4_000_000_005 == done.value.value.expires


# Key sets by URL


class Issuer:
    """An HTTP server with a key set. `answer`: what it says instead."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None
        self.url = ""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            if issuer.answer:
                issuer.answer(self)
                return
            say(self, 200, json.dumps({"keys": issuer.keys}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys?secret=hunter2"
        yield issuer
        server.shutdown()
        thread.join()


def say(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


def test_keys_are_fetched_once_and_again_when_a_token_names_another(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "PATIENCE", 0.5)
    issuer.keys = [jwk(RSA, "one")]
    with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
        assert 0 == issuer.asked
        for _ in range(5):
            assert 200 == status(service, token(RSA, "RS256", kid="one"))
        assert 1 == issuer.asked
        issuer.keys = [jwk(RSA, "one"), jwk(OTHER_RSA, "two")]
        wait_until(lambda: status(service, token(OTHER_RSA, "RS256", kid="two")) == 200, "the new key to be believed")
        assert 2 == issuer.asked
        issuer.keys = [jwk(OTHER_RSA, "two")]
        monkeypatch.setattr(jwks, "FRESH", 0.0)
        wait_until(lambda: status(service, token(RSA, "RS256", kid="one")) == 401, "the old key to be believed no more")
        assert 200 == status(service, token(OTHER_RSA, "RS256", kid="two"))


def test_unknown_keys_cause_one_fetch_for_all(tmp_path: Path, issuer: Issuer) -> None:
    issuer.keys = [jwk(RSA, "one")]
    release = threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        release.wait(5)
        say(handler, 200, json.dumps({"keys": issuer.keys}).encode())

    issuer.answer = slow
    found: list[int] = []
    with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
        kids = ["one", *(f"unknown-{n}" for n in range(9))]
        threads = [
            threading.Thread(target=lambda kid=kid: found.append(status(service, token(RSA, "RS256", kid=kid))))
            for kid in kids
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: issuer.asked == 1, "the fetch")
        assert 200 == service.get("/healthz").status_code, "the loop does not wait for it"
        release.set()
        for thread in threads:
            thread.join()
        assert [200, *[401] * 9] == sorted(found)
        assert 401 == status(service, token(RSA, "RS256", kid="another"))
        assert 1 == issuer.asked


def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
    say(handler, 302, b"", Location="/elsewhere")


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: say(handler, 500, b"oops"),
        redirect,
        lambda handler: say(handler, 200, b"not json"),
        lambda handler: say(handler, 200, b'{"keys": []}'),
        lambda handler: say(handler, 200, b"[" * 100_000),
        lambda handler: say(handler, 200, b'{"keys": [' + b" " * jwks.MAX_BYTES + b"]}"),
        lambda handler: handler.wfile.write(b"\0\0\0 no http\r\n\r\n"),
        lambda handler: say(handler, 200, json.dumps({"keys": [jwk(RSA, "one")] * 101}).encode()),
    ],
    ids=["500", "302", "text", "empty", "deep", "large", "no-http", "many"],
)
def test_keys_that_cannot_be_had_turn_away_and_those_that_were_had_stay(
    tmp_path: Path,
    issuer: Issuer,
    answer: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "eventmux.auth")
    monkeypatch.setattr(jwks, "PATIENCE", 0.0)
    monkeypatch.setattr(jwks, "FRESH", 0.0)
    issuer.answer = answer
    one = token(RSA, "RS256", kid="one")
    with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
        for accept in ("application/json", "application/x-ndjson"):
            refused = service.get("/sse/mine", headers={**bearer(one), "Accept": accept})
            assert (503, True) == (refused.status_code, int(refused.headers["retry-after"]) > 0)
        turned = service.get("/sse/mine", headers={**bearer(one), "Accept": "text/event-stream"})
        assert (200, "text/event-stream; charset=utf-8") == (turned.status_code, turned.headers["content-type"])
        assert "retry: " in turned.text
        assert "data:" not in turned.text
        assert (503, True) == (
            (found := service.get("/sources", headers=bearer(one))).status_code,
            "retry-after" in found.headers,
        )
        assert 1 == caplog.text.count("cannot be had, 0 stay"), "it is said once"
        issuer.answer, issuer.keys = None, [jwk(RSA, "one")]
        wait_until(lambda: status(service, one) == 200, "the keys")
        issuer.answer = answer
        asked = issuer.asked
        for _ in range(3):
            assert 200 == status(service, one)
        wait_until(lambda: issuer.asked > asked, "a fetch in vain")
        assert 200 == status(service, one)
    assert "hunter2" not in caplog.text


def test_while_no_keys_can_be_had_a_token_of_a_new_one_is_neither_good_nor_bad(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "PATIENCE", 0.0)
    issuer.keys = [jwk(RSA, "one")]
    with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
        assert 200 == status(service, token(RSA, "RS256", kid="one"))
        issuer.answer = lambda handler: say(handler, 500, b"oops")
        assert 503 == status(service, token(OTHER_RSA, "RS256", kid="two"))
        assert 200 == status(service, token(RSA, "RS256", kid="one"))
        assert 401 == status(service, token(OTHER_RSA, "RS256", kid="one"))
        issuer.answer, issuer.keys = None, [jwk(OTHER_RSA, "two")]
        assert 200 == status(service, token(OTHER_RSA, "RS256", kid="two"))


def test_an_issuer_that_never_gets_to_the_point_is_given_up_and_keeps_no_process(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.5)
    is_over = threading.Event()

    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not is_over.wait(0.1):
            handler.wfile.write(b"x")

    issuer.answer = trickle
    try:
        with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
            assert 503 == status(service, token(RSA, "RS256", kid="one"))
    finally:  # the service has ended, and its fetch has not
        is_over.set()


def test_keys_that_were_had_survive_new_settings_of_something_else(tmp_path: Path, issuer: Issuer) -> None:
    issuer.keys = [jwk(RSA, "one")]
    one = token(RSA, "RS256", kid="one")
    with guarded(tmp_path, algorithms=["RS256"], jwks=issuer.url) as service:
        assert 200 == status(service, one)
        issuer.answer = lambda handler: say(handler, 500, b"oops")
        text = config(algorithms=["RS256"], jwks=issuer.url)
        (tmp_path / "plugins.yaml").write_text(text.replace("[open-clock]", "[mine]"), "utf-8")
        wait_until(lambda: service.get("/sse/mine?limit=1").status_code == 200)
        assert (200, 1) == (status(service, one), issuer.asked)


@pytest.mark.parametrize(
    "odd", [{"use": "enc"}, {"alg": "RS512"}, {"key_ops": ["encrypt"]}, {"kty": "oct", "k": "c2VjcmV0"}, {"n": "!"}]
)
def test_a_key_for_something_else_is_not_used(tmp_path: Path, odd: dict[str, Any]) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{**jwk(RSA, "one"), **odd}, jwk(OTHER_RSA, "two")]}))
    with guarded(tmp_path, algorithms=["RS256"], jwks="keys.json") as service:
        assert 401 == status(service, token(RSA, "RS256", kid="one"))
        assert 200 == status(service, token(OTHER_RSA, "RS256", kid="two"))


# plugins.yaml


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"algorithms": ["HS256"]}, "auth.jwt: give exactly one of key and jwks"),
        ({"algorithms": ["RS256"], "key": pem(RSA), "jwks": "x"}, "auth.jwt: give exactly one of key and jwks"),
        ({"algorithms": ["HS256"], "key": "s" * 31}, "auth.jwt.key: HS256 needs a secret of at least 32 bytes"),
        ({"algorithms": ["HS256", "HS512"], "key": "s" * 63}, "auth.jwt.key: HS512 needs a secret of at least 64"),
        ({"algorithms": ["HS256"], "key": pem(RSA)}, "auth.jwt.key: HS256 cannot be checked with it: give a secret"),
        ({"algorithms": ["HS256", "RS256"], "key": pem(RSA)}, "auth.jwt.key: HS256 cannot be checked with it"),
        ({"algorithms": ["RS256"], "key": SECRET}, "auth.jwt.key: RS256 cannot be checked with it: give a public key"),
        ({"algorithms": ["RS256"], "key": pem(EC["ES256"])}, "auth.jwt.key: RS256 cannot be checked with it"),
        ({"algorithms": ["ES256"], "key": pem(EC["ES384"])}, "auth.jwt.key: ES256 cannot be checked with it"),
        ({"algorithms": ["EdDSA"], "key": pem(RSA)}, "auth.jwt.key: EdDSA cannot be checked with it"),
        ({"algorithms": ["RS256"], "key": pem(RSA)[:100]}, "auth.jwt.key: RS256 cannot be checked with it"),
        ({"algorithms": ["HS256"], "jwks": "https://x/y"}, "auth.jwt.algorithms: HS256 has a secret, and a key set"),
        ({"algorithms": ["RS256"], "jwks": "nothing.json"}, "auth.jwt.jwks: the key set cannot be used: No such file"),
        ({"algorithms": ["RS256"], "jwks": "plugins.yaml"}, "auth.jwt.jwks: the key set cannot be used: it is no JSON"),
        ({"algorithms": ["RS256"], "jwks": "ftp://x/y"}, "auth.jwt.jwks: no URL that can be fetched"),
        ({"algorithms": ["RS256"], "jwks": "https://"}, "auth.jwt.jwks: no URL that can be fetched"),
        ({"algorithms": ["none"], "key": SECRET}, "auth.jwt.algorithms[0]"),
    ],
)
def test_what_is_wrong_with_jwt_is_told_with_its_place(tmp_path: Path, words: dict[str, Any], fault: str) -> None:
    (tmp_path / "plugins.yaml").write_text(f"sources: {{clock: {{}}}}\nauth:\n  jwt: {json.dumps(words)}\n")
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "plugins.yaml", {})
    (text,) = refused.value.problems
    assert "plugins.yaml:3:" in text
    assert fault in text
    assert words.get("key", "no key")[:40] not in text


def test_a_private_key_is_refused_where_a_public_one_will_do(tmp_path: Path) -> None:
    private = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    text = "sources: {clock: {}}\nauth: {jwt: {algorithms: [RS256], key: '${KEY}'}}\n"
    (tmp_path / "plugins.yaml").write_text(text)
    with pytest.raises(ConfigError, match="it is a private key: give the public one"):
        load_settings(tmp_path / "plugins.yaml", {"KEY": private})
    load_settings(tmp_path / "plugins.yaml", {"KEY": pem(RSA)})
