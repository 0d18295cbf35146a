"""The promises of `eventmux.document`, kept with the parser in C and with the one in Python."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventmux import document
from eventmux.document import Document, Problem, parse_document, read_document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRON = {"SET": "value", "EMPTY": "", "SECRET": "hunter2", "NESTED": "${SET} $$", "YAML": "]\n- {a: *b"}


@pytest.fixture(autouse=True, scope="module", params=["CSafeLoader", "SafeLoader"])
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "_LOADER", getattr(yaml, request.param))
        yield request.param


def parse(text: str) -> Document:
    return parse_document(text, "plugins.yaml", ENVIRON)


def texts(found: Document) -> list[str]:
    return [problem.text(found.file) for problem in found.problems]


def value_of(text: str) -> Any:
    found = parse(text)
    assert texts(found) == []
    return found.value


def the_problem(text: str) -> str:
    (shown,) = texts(parse(text))
    return shown


# Scalars


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *[(word, True) for word in ("true", "True", "TRUE", "!!bool true")],
        *[(word, False) for word in ("false", "False", "FALSE")],
        *[(word, None) for word in ("null", "Null", "NULL", "~", "", "!!null ''", "# a comment")],
        *[(word, word) for word in ("yes", "no", "on", "off", "y", "N", "Yes", "tRue", "nULL", "=", "<<")],
        *[(word, word) for word in ("12:30:00", "1:30", "2026-01-01", "2026-01-01T00:00:00Z", "1_000", "0b11", "0X1F")],
        *[
            (word, word)
            for word in ("-0x1F", "0o8", "1e", ".", "+", "-x", "-.nan", ".iNF", "1.2.3", "gpt-5", "1e3x", "٣")
        ],
        *[
            ("0", 0),
            ("-12", -12),
            ("+12", 12),
            ("007", 7),
            ("0o17", 15),
            ("0x1F", 31),
            ("!!int 3", 3),
            ("!!int 0x10", 16),
        ],
        *[("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-3", -0.0015), ("+.5e1", 5.0), ("1.e3", 1e3)],
        *[(".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf), ("!!float 1", 1.0)],
        *[
            ("'12'", "12"),
            ('"true"', "true"),
            ("'~'", "~"),
            ("''", ""),
            ("!!str 12", "12"),
            ("! 12", "12"),
            ("!!str", ""),
        ],
        *[("'<<'", "<<"), ('"a\\tb\\u00e9"', "a\tbé"), ("|\n  a\n  12\n", "a\n12\n"), (">-\n  12\n", "12")],
        *[("!!seq [1]", [1]), ("!!map {b: 1}", {"b": 1}), ("! [1]", [1]), ("{b: 1, c}", {"b": 1, "c": None})],
    ],
)
def test_a_scalar_is_what_the_core_schema_of_yaml_1_2_says(written: str, expected: object) -> None:
    value = value_of(f"a: {written}")
    assert value == {"a": expected}
    assert type(value["a"]) is type(expected)


@pytest.mark.parametrize("written", [".nan", ".NaN", ".NAN"])
def test_nan_is_a_number_that_is_none(written: str) -> None:
    assert math.isnan(value_of(f"a: {written}")["a"])


@pytest.mark.parametrize(
    "key", ["yes", "no", "on", "off", "y", "2026-01-01", "12:30", "'12'", "!!str 12", "'<<'", "$X"]
)
def test_a_key_that_is_text_in_yaml_1_2_is_a_key(key: str) -> None:
    assert value_of(f"{key}: 1") == {key.removeprefix("!!str ").strip("'"): 1}


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "~", "null", "\ufeff", "---\n...\n", "%YAML 1.2\n---\n"]
)
def test_a_file_that_holds_nothing_is_an_empty_mapping(text: str) -> None:
    assert value_of(text) == {}


@pytest.mark.parametrize(("text", "expected"), [("[1, a]", [1, "a"]), ("a", "a"), ("false", False), ("- 1", [1])])
def test_the_root_may_be_any_value(text: str, expected: object) -> None:
    assert value_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa: 1\nb:\n  - x\n",
        "a: 1\r\nb:\r\n  - x\r\n",
        "a: 1\rb:\r  - x\r",
        "a: 1 #\ta tab in a comment\nb: [x]\n",
        "\ufeff# a comment\r\na: 1\r\n\r\nb: [x]",
        "%YAML 1.2\n---\na: 1\nb: [x]\n...\n",
    ],
)
def test_a_byte_order_mark_any_line_end_and_tabs_are_welcome(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plugins.yaml"
    path.write_bytes(text.encode())
    found = read_document(path, {})
    assert (found.value, found.problems) == ({"a": 1, "b": ["x"]}, [])


def test_a_tab_between_words_is_welcome_to_the_parser_in_c_and_a_problem_to_the_other(parser: str) -> None:
    found = parse("a:\t1\t# one\nb: [\tx\t]\t\n")
    assert found.value == ({"a": 1, "b": ["x"]} if parser == "CSafeLoader" else {})
    assert len(found.problems) == (0 if parser == "CSafeLoader" else 1)


# Variables


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${SET}", "value"),
        ("'${SET}'", "value"),
        ('"a ${SET} b ${SET}"', "a value b value"),
        ("${EMPTY:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${UNSET:-x}", "x"),
        ("${SET:-x}", "value"),
        ("${UNSET:-}", ""),
        ("${UNSET:-8000}", "8000"),
        ("'${UNSET:-a: {b $c}'", "a: {b $c"),
        ("${UNSET:-a:-b}", "a:-b"),
        ("${UNSET:-$$5}", "$5"),
        ("${NESTED}", "${SET} $$"),
        ("${YAML}", "]\n- {a: *b"),
        ("$${SET}", "${SET}"),
        ("$$$${SET}", "$${SET}"),
        ("$$${SET}", "$value"),
        ("$$", "$"),
        ("$", "$"),
        ("a$b $SET $( $", "a$b $SET $( $"),
        ("x}{$}", "x}{$}"),
        ("|\n  ${SET}\n  ${SET}\n", "value\nvalue\n"),
        ("!!str ${SET}", "value"),
    ],
)
def test_a_variable_becomes_text_after_parsing_and_only_once(written: str, expected: str) -> None:
    assert value_of(f"a: {written}") == {"a": expected}


def test_a_key_is_not_expanded() -> None:
    assert value_of("{'${SET}': 1, '$$': 2, '${': 3}") == {"${SET}": 1, "$$": 2, "${": 3}


def test_an_unset_variable_is_noted_with_its_place_and_its_value_is_none() -> None:
    found = parse("a: ${B1} and ${A} and ${B1} ${SET}\nb: [x, '${_}', '${EMPTY}']\nc: '$${A}'")
    assert found.value == {"a": None, "b": ["x", None, None], "c": "${A}"}
    assert found.unset == {("a",): ("B1", "A"), ("b", 1): ("_",), ("b", 2): ("EMPTY",)}
    assert found.problems == []


def test_an_unset_variable_behind_an_alias_is_noted_at_each_use() -> None:
    assert parse("a: &x {k: '${A}'}\nb: *x").unset == {("a", "k"): ("A",), ("b", "k"): ("A",)}


@pytest.mark.parametrize(
    "written", ["${1X}", "${A", "${}", "${A B}", "${A:=x}", "${A-x}", "${A:-x", "${A:-${B}}", "${A:?x}", "${Ä}", "x ${"]
)
def test_a_malformed_variable_is_a_problem_that_says_what_is_allowed(written: str) -> None:
    shown = the_problem(f"a:\n  b: '{written}'")
    assert shown.startswith("plugins.yaml:2:6: a.b: a malformed ${: allowed are ${NAME} and ${NAME:-default}")


# Problems and their places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "3:1: a: the key is at line 1 already: keep one of the two"),
        ("x:\n- {b: 1,\n   b: 2}", "3:4: x[0].b: the key is at line 2 already"),
        ("a: 1\n'a': 2", "2:1: a: the key is at line 1 already"),
        ("p:\n  8000: x", "2:3: p.8000: a key must be a text: quote it"),
        ("true: x", "1:1: true: a key must be a text"),
        ("~: x", '1:1: "~": a key must be a text'),
        ("? [a]\n: x", "1:3: a key must be a text"),
        ("? {a: 1}\n: x", "1:3: a key must be a text"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1", '3:3: c."<<": YAML 1.2 has no merge key: write its keys out'),
        ("a: !!python/object:os.system x", "1:4: a: an unknown tag: allowed are !!str"),
        ("a: !foo [1]", "1:4: a: an unknown tag"),
        ("a: !foo {b: 1}", "1:4: a: an unknown tag"),
        ("a: !!set {b}", "1:4: a: an unknown tag"),
        ("a: !!seq {b: 1}", "1:4: a: an unknown tag"),
        ("a: !!timestamp 2026-01-01", "1:4: a: an unknown tag"),
        ("a: !<tag:example.org,2026:x> 1", "1:4: a: an unknown tag"),
        ("!foo a: 1", "1:1: a: an unknown tag"),
        ("a: !!int x", "1:4: a: this is not a !!int of YAML 1.2: leave the tag out"),
        ("a: !!bool yes", "1:4: a: this is not a !!bool"),
        ("a: !!int ${SET}", "1:4: a: this is not a !!int"),
        ("a: " + "9" * 5000, "1:4: a: a number of more than 1000 digits: quote it"),
        ("a: 0x" + "f" * 5000, "1:4: a: a number of more than 1000 digits"),
        ("a: 1\n---\nb: 2", "2:1: a second document begins here: keep one in a file"),
        ("a: [*b]", "1:5: an alias without an anchor before it: quote a text that begins with '*'"),
        ("a: &x\n  b: [*x]", "2:7: an alias inside its own anchor: write the value out"),
        ("a: 1\n b: 2", "2:3: a ':' that cannot be here: quote a value that holds ': '"),
        ("a: b: c", "1:5: a ':' that cannot be here"),
        ("a:\n\tb: 1", "2:1: nothing begins with this character: quote the value, and indent with spaces"),
        ("a: @b", "1:4: nothing begins with this character"),
        ("a: 1\nb: 'x\nc: 1\n", "2:4: the quote that begins here is not closed"),
        ('a: 1\nb: "x\n', "2:4: the quote that begins here is not closed"),
        ("a: [1,\n  2\nb: 3\n", "3:2: a comma or the closing bracket is missing"),
        ("a: {b: ${C}}", "1:9: a comma or the closing bracket is missing: quote a value that holds one, or ${"),
        ("a: *.py", "1:5: this names no anchor: quote a text that begins with '*' or '&'"),
        ("a: 'b' c", "1:8: not YAML from here on: check the indentation (spaces, not tabs)"),
        ("- a\nb: 1", "2:1: not YAML from here on"),
        ("a: !x!y z", "1:4: not YAML from here on"),
        ("a: 1\nb: x\x07y", "2:5: the unprintable character U+0007: remove it"),
        ("\ufeffa: \x00", "1:4: the unprintable character U+0000"),
        ("a: 1\r\nb: \ud800", "2:4: the unprintable character U+D800"),
        ("a: '\u2028'", "1:5: the unprintable character U+2028"),
        ("a: 1\x85b: 2", "1:5: the unprintable character U+0085"),
        ("a: b\ufeffc", "1:5: the unprintable character U+FEFF"),
    ],
)
def test_a_problem_names_the_place_the_fault_and_the_remedy(text: str, expected: str) -> None:
    assert the_problem(text).startswith(f"plugins.yaml:{expected}")


@pytest.mark.parametrize("text", ['a: "\\q"', 'a: "\\xg"', 'a: "\\U00110000"', 'a: "\\'])
def test_a_bad_escape_is_a_problem(text: str) -> None:
    assert re.search("escape|quote", the_problem(text))


def test_a_bracket_that_is_not_closed_is_named_by_its_line() -> None:
    assert the_problem("a: 1\nb: [1,\n  2\nc: 3\n").endswith("; the bracket opens at line 2")


def test_every_fault_of_the_values_is_reported_and_the_rest_is_read() -> None:
    found = parse("a: !x 1\nb: '${'\na: 2\n3: 4\nc: [5, !y [6]]")
    assert [(problem.line, problem.column, problem.loc) for problem in found.problems] == [
        (1, 4, ("a",)),
        (2, 4, ("b",)),
        (3, 1, ("a",)),
        (4, 1, ("3",)),
        (5, 8, ("c", 1)),
    ]
    assert found.value == {"a": None, "b": None, "c": [5, None]}


def test_a_file_that_cannot_be_read_to_its_end_has_no_value_and_keeps_the_problems_before() -> None:
    found = parse(
        "a: [!x 1, " + ",".join(["&s x"] * 3) + "]\nb: &d " + "[" * 60 + "]" * 60 + "\nc: " + "[" * 9 + "*d" + "]" * 9
    )
    assert [problem.message[:22] for problem in found.problems] == ["an unknown tag: allowe", "values nested more tha"]
    assert (found.value, found.unset) == ({}, {})
    assert found.problem(("a",), "lost") == Problem(0, 0, ("a",), "lost")


@pytest.mark.parametrize(
    ("loc", "value_at", "key_at"),
    [
        ((), (2, 1), (2, 1)),
        (("sources",), (3, 3), (2, 1)),
        (("sources", "clock"), (3, 10), (3, 3)),
        (("sources", "clock", "tz"), (3, 15), (3, 11)),
        (("sources", "été"), (5, 5), (4, 3)),
        (("sources", "été", "empty"), (5, 11), (5, 5)),
        (("streams", "dash"), (6, 17), (6, 11)),
        (("streams", "dash", 1), (6, 26), (6, 26)),
        (("streams", "again"), (7, 10), (7, 3)),
        (("streams", "again", 0), (6, 21), (6, 21)),
    ],
)
def test_the_place_of_a_value_and_of_its_key_is_where_an_editor_shows_it(
    loc: tuple[str | int, ...], value_at: tuple[int, int], key_at: tuple[int, int]
) -> None:
    text = (
        "# schema\r\nsources:\r\n  clock: {tz: no}\r\n  été:\r\n    empty:\r\n"
        "streams: {dash: &d [é😀é, x],\r\n  again: *d}\r\n"
    )
    found = parse(text)
    assert texts(found) == []
    at_value, at_key = found.problem(loc, "m"), found.problem(loc, "m", key=True)
    assert (at_value, at_key) == (Problem(*value_at, loc, "m"), Problem(*key_at, loc, "m"))


@pytest.mark.parametrize(
    ("loc", "shown"),
    [
        (("sources", "clock", "missing"), "3:5: sources.clock.missing: m"),
        (("missing",), "1:1: missing: m"),
        (("sources", "tagged", "clock", "params", "n"), "4:17: sources.clock.params.n: m"),
        (("sources", "clock", "Model[int]", "params", "n", "int"), "4:17: sources.clock.params.n: m"),
        (("sources", "clock", "params", "n", "function-after[f(), int]"), "4:17: sources.clock.params.n: m"),
        (("streams", "dash", 0, "str"), "6:10: streams.dash[0]: m"),
        (("streams", "dash", "list[str]", 0), "6:10: streams.dash[0]: m"),
        (("streams", "dash", "[key]"), "6:3: streams.dash: m"),
        (("sources", "clock", "params", "[key]"), "4:5: sources.clock.params: m"),
    ],
)
def test_a_loc_of_pydantic_finds_the_nearest_place(loc: tuple[str | int, ...], shown: str) -> None:
    text = "sources:\n  clock:\n    use: clock\n    params: {n: 1}\nstreams:\n  dash: [x]"
    assert parse(text).problem(loc, "m").text("f") == f"f:{shown}"


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Problem(7, 5, ("sources", "clock", "parms"), "not known"), "f.yaml:7:5: sources.clock.parms: not known"),
        (Problem(7, 5, (), "not known"), "f.yaml:7:5: not known"),
        (Problem(0, 0, (), "no file"), "f.yaml: no file"),
        (Problem(0, 0, ("sources",), "missing"), "f.yaml: sources: missing"),
        (Problem(1, 1, ("streams", "dash", 1), "m"), "f.yaml:1:1: streams.dash[1]: m"),
        (Problem(1, 1, (0, 1, "a-b"), "m"), "f.yaml:1:1: [0][1].a-b: m"),
        (Problem(1, 1, ("a.b", "c\nd", "", "é"), "m"), 'f.yaml:1:1: "a.b"."c\\nd"."".é: m'),
    ],
)
def test_a_problem_is_shown_on_one_line_without_what_it_lacks(problem: Problem, expected: str) -> None:
    assert problem.text("f.yaml") == expected


# Bounds


def nested_aliases() -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested_aliases(), "more than 10000 values"),
        ("- x\n" * 10_000, "more than 10000 values"),
        ("a: &a " + "x" * 500_000 + "\nb: [" + "*a, " * 9_000 + "]", "more than 10000 values"),
        ("[" * 66, "values nested more than 64 deep"),
        ("[" * 500_000, "values nested more than 64 deep"),
        ("{a: " * 200_000, "values nested more than 64 deep"),
        ("- " * 500_000, "values nested more than 64 deep"),
        ("? " * 500_000, "values nested more than 64 deep"),
        ("".join(f"a{i}: &a{i} {'[' * 40}{f'*a{i - 1}' if i else 'x'}{']' * 40}\n" for i in range(50)), "nested more"),
    ],
    ids=["aliases", "items", "long-alias", "65-deep", "brackets", "braces", "dashes", "questions", "alias-chain"],
)
def test_a_bomb_is_a_problem(text: str, message: str) -> None:
    found = parse(text)
    assert found.value == {}
    assert message in texts(found)[0]


def test_as_many_values_and_levels_as_allowed_are_read() -> None:
    assert len(value_of("- x\n" * (document.MAX_NODES - 1))) == document.MAX_NODES - 1
    assert json.dumps(value_of("[" * 65 + "]" * 65)) == "[" * 65 + "]" * 65


def test_an_alias_may_be_used_again_and_its_name_given_again() -> None:
    assert value_of("a: &x [1]\nb: [*x, *x]\nc: &x 2\nd: *x\n*x : 3".replace("*x : 3", "e: *x")) == {
        "a": [1],
        "b": [[1], [1]],
        "c": 2,
        "d": 2,
        "e": 2,
    }
    assert value_of("a: &k b\n*k : 1") == {"a": "b", "b": 1}


@pytest.mark.parametrize("part", ["${A:-", "${", "$", "${A:-$", "{{", "'", '"\\', "&a ", "!", "*", "%", "|\n "])
def test_a_file_of_one_part_repeated_is_read_or_refused_at_once(part: str) -> None:
    parse("a: " + part * (100_000 // len(part)))
    parse("a: |\n " + part.replace("\n", "") * (100_000 // len(part)))


# Files


def test_a_file_is_read_under_the_name_that_the_user_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins.yaml").write_text("a: [é, '${SET}']\nb: !x 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = read_document("./plugins.yaml", ENVIRON)
    assert (found.file, found.value) == ("./plugins.yaml", {"a": ["é", "value"], "b": None})
    assert texts(found)[0].startswith("./plugins.yaml:2:4: b: an unknown tag")


def test_a_file_of_the_size_allowed_is_read_and_a_larger_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "plugins.yaml"
    path.write_bytes(b"a: 1 #".ljust(document.MAX_BYTES, b"x"))
    assert read_document(path, {}).value == {"a": 1}
    path.write_bytes(b"a: 1 #".ljust(document.MAX_BYTES + 1, b"x"))
    found = read_document(path, {})
    assert texts(found) == [f"{path}: the file is larger than 1048576 bytes: make it smaller"]
    assert found.value == {}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"a: 1\nb: \xff\xfe", "2:4"),
        (b"\xef\xbb\xbfa: \xe9", "1:4"),
        ("a: ä\r\nb: ".encode() + b"\xc3", "2:4"),
        ("a: 1".encode("utf-16"), "1:1"),
    ],
)
def test_a_file_that_is_not_utf_8_is_a_problem_at_the_first_bad_byte(
    content: bytes, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "plugins.yaml"
    path.write_bytes(content)
    assert texts(read_document(path, {})) == [f"{path}:{place}: the file is not UTF-8 text: save it as UTF-8"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.yaml", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "not a file name"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_opened_is_a_problem_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    found = read_document(tmp_path / name, {})
    remedy = "name a file that exists and that this user may read"
    assert texts(found) == [f"{tmp_path / name}: cannot be read ({reason}): {remedy}"]
    assert (found.value, found.unset) == ({}, {})


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        "a: !hunter2 x",
        "a: !hunter2",
        "a: !!hunter2 x",
        "a: !hunter2!x y",
        "a: *hunter2",
        "a: &hunter2 [*hunter2]",
        "a: &hunter2! x",
        "a: @hunter2",
        "a: %hunter2",
        "a: `hunter2",
        "a: !!int hunter2",
        "a: !!int ${SECRET}",
        "a: ${hunter2!}",
        "a: ${SECRET} ${",
        "a: ${UNSET} ${SECRET",
        "a: {b: hunter2: c}",
        "a: hunter2: c",
        "a: 'hunter2",
        'a: "hunter2\\hunter2"',
        "a: [hunter2\nb: hunter2",
        "a: 'x' hunter2",
        "a: hunter2\nb: hunter2\na: hunter2",
        "a: hunter2\x07",
        "a: hunter2\n---\nb: hunter2",
        "a: |hunter2",
        "a: !<hunter2",
        "%hunter2 x\n---\na: @b",
        "%TAG ! hunter2\n---\na: !x b",
        "? [hunter2]\n: x",
    ],
)
def test_no_value_and_no_variable_s_value_is_ever_shown(text: str) -> None:
    found = parse(text)
    assert found.problems
    assert "hunter2" not in " ".join(texts(found)) + repr(found)


def test_a_document_s_repr_holds_no_value() -> None:
    assert "hunter2" not in repr(parse("a: ${SECRET}\nb: hunter2"))


# Properties

calm = settings(deadline=None)  # a busy machine is no fault

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\x7f\x85\u2028\u2029\ufeff\ufffe\uffff", exclude_categories=["Cc"])
)
# What YAML 1.2 reads as a number and PyYAML, of YAML 1.1, therefore does not quote.
ONLY_1_2 = re.compile(r"0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?[0-9]+")


def json_values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5), max_leaves=20
    )


def escaped(value: Any) -> Any:
    """The value with each `$` of its texts doubled; keys are not expanded."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return {key: escaped(item) for key, item in value.items()} if isinstance(value, dict) else value


def none_is_empty(value: Any) -> Any:
    return {} if value is None else value


@calm
@given(json_values(TEXT))
def test_what_json_writes_comes_back(value: Any) -> None:
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    written = json.dumps(escaped(finite), ensure_ascii=False, indent=1)
    assert value_of(written) == none_is_empty(finite)


@calm
@given(json_values(TEXT.filter(lambda text: not ONLY_1_2.fullmatch(text))), st.booleans(), st.booleans())
def test_what_yaml_1_1_writes_comes_back(value: Any, flow: bool, unicode: bool) -> None:
    written = yaml.safe_dump(escaped(value), default_flow_style=flow, allow_unicode=unicode)
    assert value_of(written) == none_is_empty(value)


@calm
@given(json_values(TEXT))
def test_what_is_written_with_tags_and_quotes_comes_back(value: Any) -> None:
    assert value_of(yaml.safe_dump(escaped(value), default_style='"')) == none_is_empty(value)


@calm
@given(TEXT)
def test_a_variable_s_value_comes_back_as_it_is(value: str) -> None:
    assert parse_document("a:\n- x${V:-}\n- '${V:-}'", "f", {"V": value}).value == {"a": ["x" + value, value]}


PIECES = st.sampled_from(
    [
        *"abc: -?[]{},&*!|>'\"%@`#~<=.$0x1\n\t\r",
        "\n  ",
        ": ",
        "- ",
        "${",
        "${A}",
        "&a ",
        "*a",
        "!!int ",
        "---\n",
        "...\n",
    ]
    + [
        "<<: ",
        "? ",
        "%YAML 1.1\n",
        "%TAG ! x\n",
        "\\",
        "\\u",
        "\\x",
        "\ufeff",
        "\x00",
        "\ud800",
        "\x85",
        "é",
        "😀",
        "!<",
    ]
)


@calm
@given(st.text() | st.text(st.characters()) | st.lists(PIECES).map("".join))
@example('"\\U00110000"')
@example("%YAML " + "9" * 5000 + ".1\n---\n")
@example("&a [*a]")
@example("!<\x00")
def test_any_text_gives_a_document_or_problems_on_one_line_within_the_text(text: str) -> None:
    found = parse(text)
    lines = len(re.split(r"\r\n|\r|\n", text))
    assert all(0 <= problem.line <= lines + 1 for problem in found.problems)
    assert all(len(shown.splitlines()) == 1 for shown in texts(found))
    assert found.value is not None
    for loc in found.places:
        assert found.problem(loc, "m").loc == loc


@calm
@given(st.binary())
def test_any_bytes_in_a_file_give_a_document(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    assert read_document(path, {}).value is not None


@calm
@given(st.lists(st.text() | st.integers(), max_size=6), st.booleans())
def test_any_loc_has_a_place_in_the_file(loc: list[str | int], key: bool) -> None:
    found = parse("a: [1, {b: 2}]\nc: {'': x}")
    problem = found.problem(tuple(loc), "m", key=key)
    assert 1 <= problem.line <= 2
    assert problem.column >= 1
