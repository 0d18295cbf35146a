"""The promises of `eventmux.plugins`, on real distributions and real files."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from distributions import HEAD, on_path, source_text, write_distribution
from eventmux.plugins import Plugin, Plugins, load_plugins
from eventmux.settings import load_settings
from service import serving

BUNDLED = ["clock", "counter", "echo", "openai", "reverse-echo"]


class Install(Protocol):
    def __call__(
        self,
        entry_points: dict[str, str],
        modules: dict[str, str],
        *,
        name: str = "acme",
        version: str = "1.0",
        site: str = "site",
    ) -> None: ...


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Install a distribution for this test; `site` is one of two places on the path, `site` before `late`."""

    def run(
        entry_points: dict[str, str],
        modules: dict[str, str],
        *,
        name: str = "acme",
        version: str = "1.0",
        site: str = "site",
    ) -> None:
        write_distribution(tmp_path / site, name, entry_points, modules, version=version)

    with on_path(tmp_path / "site", tmp_path / "late"):
        yield run


def plugin_of(plugins: Plugins, name: str, distribution: str | None = "acme") -> Plugin:
    (found,) = [plugin for plugin in plugins.found if (plugin.name, plugin.distribution) == (name, distribution)]
    return found


def offered(plugins: Plugins) -> list[str]:
    """The names that are offered beside the bundled ones."""
    return sorted(plugins.offers.keys() - set(BUNDLED))


def error_of(plugins: Plugins, name: str, distribution: str | None = "acme") -> str:
    error = plugin_of(plugins, name, distribution).error
    assert error is not None
    assert "\n" not in error
    return error


# What an entry point may name


def test_the_bundled_plugins_come_in_through_the_same_entry_points() -> None:
    plugins = load_plugins()
    assert [(plugin.name, plugin.distribution, plugin.state) for plugin in plugins.found] == [
        (name, "eventmux", "loaded") for name in BUNDLED
    ]
    assert plugins.broken == []


def test_an_entry_point_names_a_module_and_the_sources_at_its_top_level_are_offered(install: Install) -> None:
    install({"beeper": "acme_beep"}, {"acme_beep": HEAD + source_text("beep") + source_text("boop_twice")})
    plugins = load_plugins()
    assert offered(plugins) == ["beep", "boop-twice"]
    plugin = plugin_of(plugins, "beeper")
    assert (plugin.distribution, plugin.version, plugin.target, plugin.state) == ("acme", "1.0", "acme_beep", "loaded")
    assert [source.name for source in plugin.sources] == ["beep", "boop-twice"]
    assert plugins.offers["beep"] == (plugin.sources[0], plugin)


def test_an_entry_point_may_name_one_source_and_the_others_of_its_module_are_not_offered(install: Install) -> None:
    install({"beep": "acme_beep:beep"}, {"acme_beep": HEAD + source_text("beep") + source_text("boop")})
    assert offered(load_plugins()) == ["beep"]


@pytest.mark.parametrize(
    "body",
    ["return [named(f'beep-{n}') for n in range(3)]", "for n in range(3):\n        yield named(f'beep-{n}')"],
    ids=["a list", "a generator"],
)
def test_computed_sources_are_registered_by_a_hook(install: Install, body: str) -> None:
    text = f"""{HEAD}
def named(name):
    @source(name=name)
    async def beep() -> AsyncIterator[Beep]:
        yield Beep(n=1)
    return beep


@hookimpl
def register_sources():
    {body}
"""
    install({"beeps": "acme_beep"}, {"acme_beep": text})
    assert offered(load_plugins()) == ["beep-0", "beep-1", "beep-2"]


def test_a_module_offers_its_own_sources_and_its_computed_ones_and_each_once(install: Install) -> None:
    hook = "\n@hookimpl\ndef register_sources():\n    yield source(name='computed')(beep.function)\n    yield beep\n"
    install({"beeps": "acme_beep"}, {"acme_beep": HEAD + source_text("beep") + "\nalias = beep\n" + hook})
    plugins = load_plugins()
    assert [source.name for source in plugin_of(plugins, "beeps").sources] == ["beep", "computed"]
    assert plugins.broken == []


def test_an_object_with_a_hook_is_a_plugin(install: Install) -> None:
    text = f"""{HEAD}{source_text("beep")}
class Beeps:
    @hookimpl
    def register_sources(self):
        return [beep]

beeps = Beeps()
"""
    install({"beeps": "acme_beep:beeps"}, {"acme_beep": text})
    assert offered(load_plugins()) == ["beep"]


def test_a_hook_that_returns_nothing_adds_nothing(install: Install) -> None:
    hook = "\n@hookimpl\ndef register_sources():\n    return None\n"
    install({"beep": "acme_beep"}, {"acme_beep": HEAD + source_text("beep") + hook})
    plugins = load_plugins()
    assert (offered(plugins), plugins.broken) == (["beep"], [])


def test_a_package_offers_what_it_imports_from_its_own_submodules(install: Install) -> None:
    modules = {
        "acme_pkg/__init__.py": "from acme_pkg.beeps import beep\n",
        "acme_pkg/beeps.py": HEAD + source_text("beep"),
    }
    install({"acme": "acme_pkg"}, modules)
    assert offered(load_plugins()) == ["beep"]


def test_a_source_imported_from_elsewhere_stays_its_own_plugins(install: Install) -> None:
    text = "from eventmux_plugins.clock import clock\n" + HEAD + source_text("beep")
    install({"beep": "acme_beep"}, {"acme_beep": text})
    plugins = load_plugins()
    assert offered(plugins) == ["beep"]
    assert plugins.offers["clock"][1].distribution == "eventmux"


def test_a_plugin_with_nothing_but_imported_sources_is_told_where_they_are(install: Install) -> None:
    install(
        {"beep": "acme_entry"}, {"acme_entry": "from acme_beep import beep\n", "acme_beep": HEAD + source_text("beep")}
    )
    assert error_of(load_plugins(), "beep") == (
        "it offers no source of its own: 'beep' is defined in acme_beep; "
        "point the entry point there, or return it from register_sources"
    )


# A plugin that is broken

DISABLE = "or name the plugin under plugins.disabled"
HOOK = f"{HEAD}{source_text('beep')}\n@hookimpl\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", f"ZeroDivisionError: division by zero (acme_bad, line 1): mend it, {DISABLE}"),
        ("\nraise SystemExit(3)", f"SystemExit: 3 (acme_bad, line 2): mend it, {DISABLE}"),
        ("import pytest\npytest.skip('no')", f"Skipped: no (acme_bad, line 2): mend it, {DISABLE}"),
        (
            "import nothing_like_this",
            f"it needs the module 'nothing_like_this' (acme_bad, line 1): install that, {DISABLE}",
        ),
        ("import os.nope", f"it needs the module 'os.nope' (acme_bad, line 1): install that, {DISABLE}"),
        ("from eventmux import Evnt", "ImportError: cannot import name 'Evnt' from 'eventmux'"),
        ("def (:", f"SyntaxError: invalid syntax (acme_bad.py, line 1): mend it, {DISABLE}"),
        (
            HEAD + source_text("beep").replace("async def", "def"),
            "source 'beep': it is not an async generator: write 'async def' and 'yield' its events (acme_bad, line 10)",
        ),
        (HEAD + "class Bad(Event, name='open'):\n    pass\n", "event Bad: the event name 'open' is reserved"),
        (f"{HOOK}def register_sources():\n    raise KeyError('row')\n", "KeyError: 'row' (acme_bad, line 18): mend it"),
        (
            f"{HOOK}def register_sources():\n    return [beep, 'beep']\n",
            "TypeError: register_sources gave 'beep': give what",
        ),
        (f"{HOOK}def register_sources():\n    return beep\n", "return a list of sources or yield them"),
        (f"{HOOK}async def register_sources():\n    return [beep]\n", "write 'def', and return a list of sources"),
        (f"{HOOK}async def register_sources():\n    yield beep\n", "write 'def', and return a list of sources"),
        (f"{HOOK}def register_sources(app):\n    return []\n", "PluginValidationError: Plugin 'acme_bad' for hook"),
        ("", "it offers no source: decorate an async generator at the top level of the module with @source"),
        ("raise RuntimeError('one\\ntwo\\r\\n' + 'x' * 10_000)", "RuntimeError: one two xxx"),
        (
            "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd",
            f"Odd: an error that has no text (acme_bad, line 4): mend it, {DISABLE}",
        ),
    ],
)
def test_a_broken_plugin_fails_with_an_error_that_helps_and_the_others_are_loaded(
    install: Install, text: str, error: str
) -> None:
    install({"bad": "acme_bad"}, {"acme_bad": text})
    install({"good": "acme_good"}, {"acme_good": HEAD + source_text("good")}, name="zeta")
    plugins = load_plugins()
    assert error in error_of(plugins, "bad")
    assert len(error_of(plugins, "bad")) < 600
    assert plugin_of(plugins, "bad").state == "failed"
    assert plugin_of(plugins, "bad").title == "bad (acme 1.0)"
    assert plugins.broken == [plugin_of(plugins, "bad")]
    assert offered(plugins) == ["good"]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("acme_gone", f"its module 'acme_gone' is not there: install acme again, {DISABLE}"),
        ("acme_gone.deeper:thing", f"its module 'acme_gone.deeper' is not there: install acme again, {DISABLE}"),
        ("acme_here:thing", f"AttributeError: module 'acme_here' has no attribute 'thing': mend it, {DISABLE}"),
        (
            "acme_here:value",
            "it offers no source: decorate an async generator at the top level of the module with @source",
        ),
    ],
)
def test_an_entry_point_that_leads_nowhere_says_so(install: Install, target: str, error: str) -> None:
    install({"bad": target}, {"acme_here": "value = 5\n"})
    assert error_of(load_plugins(), "bad") == error


def test_a_module_that_failed_is_not_left_half_imported(install: Install) -> None:
    install({"bad": "acme_bad"}, {"acme_bad": "1 / 0"})
    load_plugins()
    assert "acme_bad" not in sys.modules


def test_the_place_named_is_the_plugins_own_and_not_that_of_the_library_it_calls(install: Install) -> None:
    install(
        {"bad": "acme_pkg.entry"}, {"acme_pkg/__init__.py": "", "acme_pkg/entry.py": "import json\n\njson.loads('{')\n"}
    )
    assert "(acme_pkg.entry, line 3): mend it" in error_of(load_plugins(), "bad")


def test_the_place_named_may_be_another_module_of_the_plugin(install: Install) -> None:
    modules = {"acme_pkg/__init__.py": "", "acme_pkg/entry.py": "import acme_pkg.deep", "acme_pkg/deep.py": "\n\n1 / 0"}
    install({"bad": "acme_pkg.entry"}, modules)
    assert "(acme_pkg.deep, line 3): mend it" in error_of(load_plugins(), "bad")


def test_ctrl_c_while_a_plugin_is_imported_is_not_the_plugins_failure(install: Install) -> None:
    install({"slow": "acme_slow"}, {"acme_slow": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_the_traceback_of_a_broken_plugin_is_in_the_debug_log(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install({"bad": "acme_bad"}, {"acme_bad": "1 / 0"})
    with caplog.at_level(logging.DEBUG, "eventmux.plugins"):
        load_plugins()
    assert "plugin bad (acme 1.0)" in caplog.text
    assert 'acme_bad.py", line 1' in caplog.text


def test_a_misspelt_hook_is_named_with_the_nearest_one_and_the_sources_are_offered_all_the_same(
    install: Install,
) -> None:
    install({"beep": "acme_beep"}, {"acme_beep": f"{HOOK}def register_source():\n    return []\n"})
    plugins = load_plugins()
    assert error_of(plugins, "beep") == "no hook 'register_source': did you mean 'register_sources'?"
    assert plugin_of(plugins, "beep").state == "partial"
    assert offered(plugins) == ["beep"]


def test_a_hook_that_is_marked_as_optional_may_be_unknown(install: Install) -> None:
    text = HEAD + source_text("beep") + "\n@hookimpl(optionalhook=True)\ndef on_another_version():\n    pass\n"
    install({"beep": "acme_beep"}, {"acme_beep": text})
    assert load_plugins().broken == []


def test_a_hook_without_its_mark_is_noticed(install: Install) -> None:
    install({"beep": "acme_beep"}, {"acme_beep": HEAD + "\ndef register_sources():\n    return []\n"})
    plugins = load_plugins()
    assert error_of(plugins, "beep") == "register_sources is not marked: put @hookimpl above it"
    assert plugin_of(plugins, "beep").state == "failed"


def test_a_wrapper_of_a_hook_sees_its_own_plugin_only(install: Install) -> None:
    wrapper = "@hookimpl(wrapper=True)\ndef register_sources():\n    given = yield\n    return [given[0][:1]]\n"
    install({"one": "acme_one"}, {"acme_one": HEAD + source_text("one") + source_text("cut") + wrapper})
    install({"two": "acme_two"}, {"acme_two": HEAD + source_text("two")}, name="zeta")
    plugins = load_plugins()
    assert (offered(plugins), plugins.broken) == (["one", "two"], [])


def test_a_broken_plugin_is_in_readyz_and_does_not_keep_the_others_from_being_served(
    install: Install, tmp_path: Path
) -> None:
    install({"bad": "acme_bad"}, {"acme_bad": "1 / 0"})
    install({"good": "acme_good"}, {"acme_good": HEAD + source_text("good", beeps=3)}, name="zeta", version="2.0")
    file = tmp_path / "plugins.yaml"
    file.write_text("sources: {good: {}, bad: {}}\n", "utf-8")
    with serving(load_settings(file, {})) as service:
        with service.open("/sse/good") as stream:
            assert [event.data["n"] for event in stream.take(3)] == [0, 1, 2]
        refused = service.get("/sse/bad")
        ready = service.get("/readyz").json()
    assert refused.status_code == 503
    assert "plugin bad (acme 1.0) cannot be used; eventmux plugins says why" in refused.json()["detail"]
    assert "ZeroDivisionError" not in refused.text
    assert ready["plugins"] == [
        {
            "name": "bad",
            "distribution": "acme",
            "state": "failed",
            "error": f"ZeroDivisionError: division by zero (acme_bad, line 1): mend it, {DISABLE}",
        }
    ]


# Names that two offer


def test_a_name_that_two_offer_is_nobodys_both_say_so_and_their_other_sources_are_offered(install: Install) -> None:
    install({"one": "acme_one"}, {"acme_one": HEAD + source_text("beep") + source_text("first")})
    install({"two": "zeta_two"}, {"zeta_two": HEAD + source_text("beep") + source_text("second")}, name="zeta")
    plugins = load_plugins()
    words = "offered by one (acme 1.0) and by two (zeta 1.0): name 'acme:one' or 'zeta:two' under plugins.disabled"
    assert error_of(plugins, "one") == error_of(plugins, "two", "zeta") == f"source 'beep' is {words}"
    assert [plugin_of(plugins, "one").state, plugin_of(plugins, "two", "zeta").state] == ["partial", "partial"]
    assert plugins.contested == {"beep": words}
    assert offered(plugins) == ["first", "second"]


def test_a_plugin_cannot_take_a_bundled_name_without_a_word(install: Install) -> None:
    install({"clock": "acme_clock"}, {"acme_clock": HEAD + source_text("clock")})
    plugins = load_plugins()
    assert "clock" not in plugins.offers
    assert "offered by clock (acme 1.0) and by clock (eventmux " in error_of(plugins, "clock")
    assert "name 'acme:clock' or 'eventmux:clock' under plugins.disabled" in error_of(plugins, "clock")


def test_what_the_error_says_settles_who_has_the_name(install: Install) -> None:
    install({"clock": "acme_clock"}, {"acme_clock": HEAD + source_text("clock")})
    assert load_plugins(disabled=["eventmux:clock"]).offers["clock"][1].distribution == "acme"
    assert load_plugins(disabled=["acme:clock"]).offers["clock"][1].distribution == "eventmux"


def test_three_that_offer_one_name_are_all_named(install: Install) -> None:
    for name in ("acme", "beta", "zeta"):
        install({name: f"{name}_mod"}, {f"{name}_mod": HEAD + source_text("beep")}, name=name)
    assert "offered by acme (acme 1.0) and by beta (beta 1.0) and by zeta (zeta 1.0)" in error_of(
        load_plugins(), "acme"
    )


def test_one_plugin_that_offers_a_name_twice_is_told_to_rename_one(install: Install) -> None:
    second = "\nother = source(name='beep')(beep.function)\n"
    install({"beep": "acme_beep"}, {"acme_beep": HEAD + source_text("beep") + source_text("good") + second})
    plugins = load_plugins()
    assert error_of(plugins, "beep") == (
        "source 'beep' is offered twice by beep (acme 1.0): give one another name, @source(name=...)"
    )
    assert offered(plugins) == ["good"]


def test_a_misspelt_hook_and_a_contested_name_are_both_said(install: Install) -> None:
    install({"one": "acme_one"}, {"acme_one": f"{HOOK}def register_source():\n    return []\n"})
    install({"two": "zeta_two"}, {"zeta_two": HEAD + source_text("beep")}, name="zeta")
    error = error_of(load_plugins(), "one")
    assert error.startswith(
        "no hook 'register_source': did you mean 'register_sources'?; source 'beep' is offered by one"
    )


# Disabled


@pytest.mark.parametrize("name", ["beep", "acme:beep"])
def test_a_disabled_plugin_is_listed_and_never_imported(install: Install, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "imported"
    install({"beep": "acme_beep"}, {"acme_beep": f"open({str(trace)!r}, 'w').close()\n{HEAD}{source_text('beep')}"})
    plugins = load_plugins(disabled=[name])
    assert not trace.exists()
    assert "acme_beep" not in sys.modules
    plugin = plugin_of(plugins, "beep")
    assert (plugin.state, plugin.error, plugin.sources, plugin.version) == ("disabled", None, (), "1.0")
    assert offered(plugins) == []
    load_plugins()
    assert trace.exists()


def test_a_name_disables_every_plugin_that_has_it_and_a_distribution_before_it_only_one(install: Install) -> None:
    install({"same": "acme_one"}, {"acme_one": HEAD + source_text("one")})
    install({"same": "zeta_two"}, {"zeta_two": HEAD + source_text("two")}, name="zeta")
    assert offered(load_plugins()) == ["one", "two"]
    assert offered(load_plugins(disabled=["same"])) == []
    assert offered(load_plugins(disabled=["acme:same"])) == ["two"]


# Distributions on the path


def test_two_distributions_may_have_one_entry_point_name(install: Install) -> None:
    install({"same": "acme_one"}, {"acme_one": HEAD + source_text("one")})
    install({"same": "zeta_two"}, {"zeta_two": HEAD + source_text("two")}, name="zeta")
    plugins = load_plugins()
    assert offered(plugins) == ["one", "two"]
    assert plugins.broken == []


def test_of_a_distribution_that_is_on_the_path_twice_only_the_first_counts(install: Install) -> None:
    install({"beep": "acme_beep"}, {"acme_beep": HEAD + source_text("beep")}, version="2.0")
    install({"beep": "acme_beep", "old": "acme_old"}, {"acme_old": "1 / 0"}, site="late")
    plugins = load_plugins()
    assert [(p.name, p.version) for p in plugins.found if p.distribution == "acme"] == [("beep", "2.0")]
    assert plugins.broken == []


def test_plugins_are_listed_by_distribution_and_name_and_files_last(install: Install, tmp_path: Path) -> None:
    install({"b": "zeta_b", "a": "zeta_a"}, {m: HEAD + source_text(m) for m in ("zeta_a", "zeta_b")}, name="zeta")
    install({"z": "acme_z"}, {"acme_z": HEAD + source_text("acme_z")})
    local = tmp_path / "local"
    local.mkdir()
    (local / "aaa.py").write_text(HEAD + source_text("aaa"), "utf-8")
    titles = [plugin.key for plugin in load_plugins(directory=local).found]
    assert titles == ["acme:z", *(f"eventmux:{name}" for name in BUNDLED), "zeta:a", "zeta:b", "aaa.py"]


# Single files


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "local"
    directory.mkdir()
    with on_path(tmp_path / "nothing"):
        yield directory


def test_a_file_in_the_directory_is_a_plugin_whatever_its_name(local: Path) -> None:
    (local / "my-source.v2.py").write_text(HEAD + source_text("local_beep"), "utf-8")
    plugins = load_plugins(directory=local)
    plugin = plugin_of(plugins, "my-source.v2", None)
    assert (plugin.state, plugin.version, plugin.target) == ("loaded", None, str(local / "my-source.v2.py"))
    assert offered(plugins) == ["local-beep"]


def test_files_that_begin_with_an_underscore_or_a_dot_and_other_files_are_no_plugins(local: Path) -> None:
    for name in ("_private.py", ".hidden.py", "notes.txt", "beep.pyc", "old.py.bak"):
        (local / name).write_text("1 / 0", "utf-8")
    assert [plugin for plugin in load_plugins(directory=local).found if plugin.distribution is None] == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("\n1 / 0", f"ZeroDivisionError: division by zero (bad, line 2): mend it, {DISABLE}"),
        ("import nothing_like_this", f"it needs the module 'nothing_like_this' (bad, line 1): install that, {DISABLE}"),
        ("", "it offers no source: decorate an async generator at the top level of the module with @source"),
    ],
)
def test_a_broken_file_is_listed_with_its_error_and_the_others_are_loaded(local: Path, text: str, error: str) -> None:
    (local / "bad.py").write_text(text, "utf-8")
    (local / "good.py").write_text(HEAD + source_text("good"), "utf-8")
    plugins = load_plugins(directory=local)
    assert error_of(plugins, "bad", None) == error
    assert plugin_of(plugins, "bad", None).title == f"bad ({local / 'bad.py'})"
    assert offered(plugins) == ["good"]


def test_a_file_that_is_no_text_or_a_directory_is_a_broken_plugin_and_no_more(local: Path) -> None:
    (local / "binary.py").write_bytes(b"\xff\xfe\x00")
    (local / "folder.py").mkdir()
    (local / "good.py").write_text(HEAD + source_text("good"), "utf-8")
    plugins = load_plugins(directory=local)
    assert [plugin.name for plugin in plugins.broken] == ["binary", "folder"]
    assert offered(plugins) == ["good"]


def test_a_file_that_failed_is_not_left_half_imported(local: Path) -> None:
    (local / "bad.py").write_text("1 / 0", "utf-8")
    load_plugins(directory=local)
    assert [name for name in sys.modules if name.endswith("bad")] == []


def test_a_file_hides_no_module_of_its_name_and_its_classes_know_theirs(local: Path) -> None:
    dataclass = "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: 'int'\n"
    (local / "json.py").write_text(
        "from __future__ import annotations\n" + HEAD + dataclass + source_text("beep"), "utf-8"
    )
    assert offered(load_plugins(directory=local)) == ["beep"]
    assert sys.modules["json"] is json


def test_a_file_is_disabled_by_its_name_and_with_py_where_a_plugin_has_the_name_too(local: Path) -> None:
    (local / "clock.py").write_text(HEAD + source_text("clock"), "utf-8")
    clocks = [
        plugin.state for plugin in load_plugins(directory=local, disabled=["clock"]).found if plugin.name == "clock"
    ]
    assert clocks == ["disabled", "disabled"]
    assert load_plugins(directory=local, disabled=["clock.py"]).offers["clock"][1].distribution == "eventmux"
    assert load_plugins(directory=local, disabled=["eventmux:clock"]).offers["clock"][1].distribution is None
    contested = load_plugins(directory=local).contested["clock"]
    assert contested.endswith("name 'eventmux:clock' or 'clock.py' under plugins.disabled")
