"""The promises of the command, kept by the command: every test here runs it as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from distributions import HEAD, source_text, write_distribution
from eventsource import EventSource
from service import serve_process

SHIPPED = Path(__file__).parents[1] / "plugins.yaml"
COMMAND = Path(sys.executable).with_name("eventmux")

CONFIG = """\
plugins: {dir: local, disabled: [echo]}
sources:
  beep: {}
  reverse-echo: {}
  counter: {params: {interval: 0}}
  clock: {}
  fast-clock: {use: clock, params: {interval: 0.05}}
  openai: {params: {api_key: "${KEY_THAT_IS_NOT_SET}"}}
streams:
  dash: [clock, counter]
  talk: [reverse-echo, clock]
"""
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what is refused
BROKEN = "ZeroDivisionError: division by zero (bad, line 2): mend it, or name the plugin under plugins.disabled"


def run(*arguments: str, cwd: Path, program: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(program or (sys.executable, "-m", "eventmux")), *arguments],
        cwd=cwd,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("OPENAI")}, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refused(*arguments: str, cwd: Path, **environ: str) -> list[str]:
    """The lines in which the command says why it does not do what it is asked."""
    done = run(*arguments, cwd=cwd, program=(), **environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugins.yaml with CONFIG, and beside it a plugin that works and one that does not."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "plugins.yaml").write_text(CONFIG, "utf-8")
    (folder / "local").mkdir()
    (folder / "local" / "beep.py").write_text("print('hello from beep')\n" + HEAD + source_text("beep"), "utf-8")
    (folder / "local" / "bad.py").write_text("\n1 / 0\n", "utf-8")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Write a plugins.yaml for this test; gives its folder."""

    def write(text: str) -> Path:
        (tmp_path / "plugins.yaml").write_text(text, "utf-8")
        return tmp_path

    return write


def version() -> str:
    return re.search(r'^version = "(.*)"', (SHIPPED.parent / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]  # type: ignore[index]


# The command itself


def test_the_command_and_the_module_are_the_same(tmp_path: Path) -> None:
    by_name = run("--version", cwd=tmp_path, program=(str(COMMAND),))
    by_module = run("--version", cwd=tmp_path)
    assert by_name.stdout == by_module.stdout == f"eventmux, version {version()}\n"
    assert (by_name.returncode, by_module.returncode) == (0, 0)


def test_help_lists_every_command_in_one_whole_line(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path).stdout
    for command in ("serve", "plugins", "sources", "check", "schema"):
        assert re.search(rf"^  {command} +\w.*[^.]\.?$", shown, re.MULTILINE)
    assert "..." not in shown.partition("Commands:")[2]


def test_only_serve_waits_for_the_web_framework(tmp_path: Path) -> None:
    code = (
        "import sys, eventmux.cli as c; c.main(['plugins'], standalone_mode=False); sys.exit('fastapi' in sys.modules)"
    )
    assert run("-c", code, cwd=tmp_path, program=(sys.executable,)).returncode == 0


# serve


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """The URL of a service that runs in `folder`, and what it has printed."""
    with serve_process(cwd=folder) as process:
        url = process.wait_for_url()
        yield url, process.log.read_text()


def test_serve_prints_what_it_serves_with_urls_that_work_as_they_stand(served: tuple[str, str]) -> None:
    url, printed = served
    assert printed.splitlines()[:17] == [
        "hello from beep",
        f"eventmux {version()} at {url}, from plugins.yaml",
        "",
        "source        run      url",
        f"beep          private  {url}/sse/beep",
        f"reverse-echo  private  {url}/sse/reverse-echo?message=",
        f"counter       private  {url}/sse/counter",
        f"clock         shared   {url}/sse/clock",
        f"fast-clock    shared   {url}/sse/fast-clock",
        "",
        "stream  sources              url",
        f"dash    clock, counter       {url}/sse/dash",
        f"talk    reverse-echo, clock  {url}/sse/talk?message=",
        "",
        f"merged on demand: {url}/sse?sources=beep,counter",
        "",
        f"plugin bad (local/bad.py): {BROKEN}",
    ]
    for path in re.findall(r"http\S+/sse\S+", printed):
        with EventSource(path) as stream:
            assert stream.take(1)


def test_serve_prints_what_is_unavailable_and_why(served: tuple[str, str]) -> None:
    assert served[1].splitlines()[17:] == [
        "source openai is unavailable: the environment variable KEY_THAT_IS_NOT_SET is not set (plugins.yaml:8:30)"
    ]


def test_serve_prints_nothing_twice(served: tuple[str, str]) -> None:
    assert served[1].count("ZeroDivisionError") == 1


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_streams_with_a_time_to_come_back_and_the_process_with_0(tmp_path: Path, sig: int) -> None:
    with serve_process(cwd=tmp_path) as process:
        url = process.wait_for_url()
        with (
            EventSource(f"{url}/sse/counter?interval=0.05") as busy,
            EventSource(f"{url}/sse/clock?interval=60") as idle,
        ):
            busy.take(2)
            for stream in (busy, idle):
                stream.parser.retry = None
            started = time.monotonic()
            process.process.send_signal(sig)
            for stream in (busy, idle):
                stream.rest()  # raises if the connection is cut off instead of ended
                assert stream.parser.retry is not None
                assert stream.parser.retry >= 2000
        assert process.process.wait(5) == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in process.log.read_text()
        assert "ERROR" not in process.log.read_text()


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("serve", "--port", str(port), cwd=tmp_path) == [
            f"cannot listen on 127.0.0.1:{port}: another program listens there: stop it, or choose another --port"
        ]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("203.0.113.1", "Cannot assign requested address"),
        ("a..b", "not the name of a host"),
        ("é" * 70, "not the name of a host"),
    ],
)
def test_a_host_that_is_not_this_machine_is_one_clear_line(tmp_path: Path, host: str, reason: str) -> None:
    assert refused("serve", "--insecure", "--host", host, "--port", "8000", cwd=tmp_path) == [
        f"cannot listen on {host}:8000: {reason}: choose another --host"
    ]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", ("--host", EVERYWHERE)),
        ("", ("--host", "")),
        ("server: {host: '::'}", ()),
        ("server: {host: example.org}", ()),
    ],
)
def test_nobody_else_can_reach_a_service_that_asks_for_no_token(
    config: Any, text: str, options: tuple[str, ...]
) -> None:
    (line,) = refused("serve", *options, cwd=config(text))
    assert (
        "nobody is asked for a token: say in plugins.yaml under auth who may read, or add --insecure if all may" in line
    )


@pytest.mark.parametrize("options", [(), ("--insecure",)])
def test_a_service_that_asks_for_a_token_may_be_reached(config: Any, options: tuple[str, ...]) -> None:
    """192.0.2.1 is nobody's (RFC 5737): it gets as far as that."""
    auth = "auth: {tokens: [{name: a, token: b, read: [clock]}]}" if not options else ""
    (line,) = refused("serve", "--host", "192.0.2.1", *options, cwd=config(auth))
    assert line.startswith("cannot listen on 192.0.2.1:")


def test_a_host_with_a_nul_is_one_clear_line(config: Any) -> None:
    (line,) = refused("serve", "--insecure", cwd=config('server: {host: "a\\0b"}'))
    assert line.endswith("not the name of a host: choose another --host")


def test_insecure_serves_everyone(tmp_path: Path) -> None:
    with serve_process("--insecure", "--host", EVERYWHERE, cwd=tmp_path) as process:
        assert process.wait_for_url().startswith(f"http://{EVERYWHERE}:")
        assert process.stop() == 0


def test_more_than_one_process_is_refused_while_history_is_in_memory(tmp_path: Path) -> None:
    assert refused("serve", "--workers", "2", cwd=tmp_path) == [
        (
            "--workers 2: with store: memory, each process would have streams of its own: say in plugins.yaml "
            "store: redis://host:6379/0, or leave --workers out"
        )
    ]


def test_options_win_over_the_file(config: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cwd = config(f"server: {{host: example.org, port: {taken.getsockname()[1]}}}")
        with serve_process("--host", "127.0.0.1", cwd=cwd) as process:  # which adds --port 0
            assert process.wait_for_url().startswith("http://127.0.0.1:")


def test_without_sources_the_service_says_so_and_runs(config: Any) -> None:
    with serve_process(cwd=config("sources: {}")) as process:
        process.wait_for_url()
        assert "No source is enabled: name some under sources." in process.log.read_text()


def test_strict_refuses_a_broken_plugin_and_a_source_that_is_unavailable(folder: Path) -> None:
    lines = refused("serve", "--strict", "--port", "0", cwd=folder)
    assert lines[0] == "hello from beep"
    assert lines[1] == "--strict: not started, because of"
    assert [line.split(": ")[0] for line in lines[2:]] == ["plugin bad (local/bad.py)", "source openai is unavailable"]


def test_strict_starts_where_nothing_is_wrong(config: Any) -> None:
    with serve_process("--strict", cwd=config("sources: {clock: {}}")) as process:
        process.wait_for_url()


@pytest.mark.parametrize("command", ["serve", "sources", "check"])
def test_a_faulty_file_is_reported_whole_and_nothing_is_started(config: Any, command: str) -> None:
    cwd = config("sources:\n  cluck: {}\nserver: {port: x}\n")
    assert [line.split(": ")[0] for line in refused(command, cwd=cwd)] == ["plugins.yaml:2:3", "plugins.yaml:3:16"]


# check


def test_check_finds_no_fault_in_the_shipped_file() -> None:
    done = run("check", cwd=SHIPPED.parent, OPENAI_API_KEY="sk-test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "plugins.yaml: no fault; 6 sources, 1 stream\n"


def test_check_mentions_what_waits_for_a_variable_and_that_is_no_fault() -> None:
    done = run("check", str(SHIPPED), cwd=SHIPPED.parent)
    assert done.returncode == 0
    reason = r"the environment variable OPENAI_API_KEY is not set \(\S+/plugins.yaml:\d+:\d+\)"
    assert re.fullmatch(f"source openai is unavailable: {reason}\n", done.stderr)
    assert done.stdout == f"{SHIPPED}: no fault; 6 sources (1 unavailable), 1 stream\n"


def test_check_without_a_file_checks_the_bundled_sources(tmp_path: Path) -> None:
    done = run("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (
        0,
        "no plugins.yaml, the bundled sources: no fault; 5 sources (1 unavailable), 0 streams\n",
    )


def test_check_fails_for_a_broken_plugin(folder: Path) -> None:
    lines = refused("check", cwd=folder)
    assert lines[1].startswith("plugin bad (local/bad.py): ZeroDivisionError")


def test_check_fails_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    (line,) = refused("check", "gone.yaml", cwd=tmp_path)
    assert line.startswith("gone.yaml: cannot be read (No such file or directory): ")


# plugins


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with distributions that are broken, and some that are not."""
    site = tmp_path_factory.mktemp("site")
    many = "".join(source_text(f"beep_{n}") for n in range(40))
    write_distribution(site, "acme-many", {"many": "acme_many"}, {"acme_many": HEAD + many}, version="2.1")
    write_distribution(site, "acme-bad", {"bad": "acme_bad"}, {"acme_bad": "raise ValueError('a\\nb' + 'x' * 5000)"})
    return site


def test_plugins_are_a_table_with_their_errors_below(folder: Path, site: Path) -> None:
    done = run("plugins", cwd=folder, PYTHONPATH=str(site))
    assert done.returncode == 0
    head, bad, many, *rest = done.stdout.splitlines()
    assert head.split() == ["plugin", "distribution", "version", "state", "sources"]
    assert bad.split() == ["bad", "acme-bad", "1.0", "failed"]
    assert re.split("  +", many) == ["many", "acme-many", "2.1", "loaded", many.partition("loaded")[2].strip()]
    assert many.endswith("and 33 more")
    assert [re.split("  +", line)[:4] for line in rest[:7]] == [
        *([name, "eventmux", version(), "loaded"] for name in ("clock", "counter")),
        ["echo", "eventmux", version(), "disabled"],
        *([name, "eventmux", version(), "loaded"] for name in ("openai", "reverse-echo")),
        ["bad", "local/bad.py", "failed"],
        ["beep", "local/beep.py", "loaded", "beep"],
    ]
    assert rest[7::2] == ["", ""]
    assert rest[8].startswith("bad (acme-bad 1.0): ValueError: a bxxx")
    assert rest[8].endswith(" ... (acme_bad, line 1): mend it, or name the plugin under plugins.disabled")
    assert rest[10].startswith("bad (local/bad.py): ZeroDivisionError")
    assert max(len(line) for line in done.stdout.splitlines()[:10]) < 120


def test_plugins_as_json_are_for_programs_whatever_a_plugin_prints(folder: Path, site: Path) -> None:
    done = run("plugins", "--json", cwd=folder, PYTHONPATH=str(site))
    rows = {(row["name"], row["distribution"]): row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert len(rows[("many", "acme-many")]["sources"]) == 40
    assert rows[("echo", "eventmux")] == {
        "name": "echo",
        "distribution": "eventmux",
        "version": version(),
        "target": "eventmux_plugins.echo",
        "sources": [],
        "state": "disabled",
        "error": None,
    }
    assert rows[("bad", None)] == {
        "name": "bad",
        "distribution": None,
        "version": None,
        "target": "local/bad.py",
        "sources": [],
        "state": "failed",
        "error": BROKEN,
    }
    assert "hello from beep" in done.stderr


def test_verbose_shows_the_traceback_of_what_is_broken(folder: Path) -> None:
    assert "Traceback" not in run("plugins", cwd=folder).stderr
    shown = run("-v", "plugins", cwd=folder).stderr
    assert re.search(r'bad.py", line 2, in <module>\n +1 / 0', shown)


def test_plugins_are_listed_while_the_rest_of_the_file_is_wrong(config: Any) -> None:
    done = run("plugins", cwd=config("sources: {cluck: {}}\nplugins: {disabled: [echo]}"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^echo +eventmux +\S+ +disabled$", done.stdout, re.MULTILINE)


# sources


def test_sources_are_listed_as_serve_would_offer_them(folder: Path) -> None:
    done = run("sources", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"eventmux {version()} at http://127.0.0.1:8000, from plugins.yaml"
    assert "fast-clock    shared   http://127.0.0.1:8000/sse/fast-clock" in done.stdout.splitlines()


def test_sources_as_json_are_for_programs(folder: Path) -> None:
    found = json.loads(run("sources", "--json", cwd=folder).stdout)
    assert found["sources"][4:] == [
        {
            "name": "fast-clock",
            "plugin": "clock",
            "shared": True,
            "url": "http://127.0.0.1:8000/sse/fast-clock",
            "unavailable": None,
        },
        {
            "name": "openai",
            "plugin": "openai",
            "shared": False,
            "url": "http://127.0.0.1:8000/sse/openai",
            "unavailable": "the environment variable KEY_THAT_IS_NOT_SET is not set (plugins.yaml:8:30)",
        },
    ]
    assert found["streams"][0] == {
        "name": "dash",
        "sources": ["clock", "counter"],
        "url": "http://127.0.0.1:8000/sse/dash",
    }


def test_an_ipv6_host_is_written_in_brackets(config: Any) -> None:
    done = run("sources", cwd=config("server: {host: '::1'}"))
    assert done.stdout.startswith(f"eventmux {version()} at http://[::1]:8000, from plugins.yaml\n")


# schema


def test_the_schema_is_written_where_the_first_lines_of_the_shipped_file_say(tmp_path: Path) -> None:
    text = SHIPPED.read_text("utf-8")
    (tmp_path / "plugins.yaml").write_text(text, "utf-8")
    (instruction,) = re.findall(r"`(eventmux schema > \S+)`", text)
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE)
    path = f"{COMMAND.parent}:{os.environ['PATH']}"
    done = run("-c", instruction, cwd=tmp_path, program=("sh",), PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    Draft202012Validator.check_schema(json.loads((tmp_path / named).read_text("utf-8")))


def test_the_schema_knows_the_sources_of_single_files_and_is_there_while_the_file_is_wrong(folder: Path) -> None:
    (folder / "faulty.yaml").write_text("plugins: {dir: local}\nsources: {beep: {parms: 1}}", "utf-8")
    schema = json.loads(run("schema", "--config", "faulty.yaml", cwd=folder).stdout)
    assert "beep" in schema["properties"]["sources"]["properties"]
