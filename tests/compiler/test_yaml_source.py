"""YAML with places: what is read, where it says it stands, and what is refused."""

from pathlib import Path

import pytest

from compiler.yaml_source import MAX_BYTES, Source, apply_overrides, load_yaml, override_value


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text or bytes -> a Source called model.yaml."""
    monkeypatch.chdir(tmp_path)

    def reader(content: str | bytes) -> Source:
        data = content.encode() if isinstance(content, str) else content
        Path("model.yaml").write_bytes(data)
        return load_yaml(Path("model.yaml"))

    return reader


def messages(source: Source) -> list[str]:
    """Every error as `place: message`."""
    return [f"{error.where}: {error.message}" for error in source.errors]


def test_plain_values_are_those_of_the_safe_loader(read):
    source = read("a: {b: [1, 2.5, true, null, 2024-01-02]}\nc: 1e-5\nd: yes\ne: 0x10\n")
    assert source.errors == ()
    assert isinstance(source.data, dict)
    assert str(source.data) == (
        "{'a': {'b': [1, 2.5, True, None, datetime.date(2024, 1, 2)]}, "
        "'c': '1e-5', 'd': True, 'e': 16}"
    )


def test_places_are_one_based_and_fall_back_to_the_nearest_ancestor(read):
    source = read("a:\n  b:\n    c: 7\n  d: [x, [y]]\n")
    assert source.place(("a", "b", "c")) == "model.yaml:3:8"
    assert source.key_place(("a", "b", "c")) == "model.yaml:3:5"
    assert source.place(("a", "b")) == "model.yaml:2:3"
    assert source.place(("a", "d", 1, 0)) == "model.yaml:4:11"
    assert source.place(("a", "b", "missing", "deeper")) == "model.yaml:2:3"
    assert source.place(("nothing",)) == "model.yaml:1:1"
    assert source.spelling(("a", "b", "c")) == "7"
    assert source.spelling(("a", "b")) is None


def test_a_duplicate_key_names_both_lines_and_the_first_is_kept(read):
    source = read("a: 1\nb: 2\na: 3\n")
    assert messages(source) == ["model.yaml:3:1: the key 'a' stands here again, first in line 1"]
    assert source.errors[0].code == "duplicate-key"
    assert source.data == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on: 1", "model.yaml:1:1: YAML reads the key 'on' as a boolean, and keys are text"),
        ("1: a", "model.yaml:1:1: YAML reads the key '1' as a number, and keys are text"),
        ("~: a", "model.yaml:1:1: YAML reads the key '~' as a null, and keys are text"),
        ("? [a, b]\n: 1", "model.yaml:1:3: a list or a mapping stands as a key"),
        ("{a: b}: 1", "model.yaml:1:1: a list or a mapping stands as a key"),
    ],
)
def test_keys_are_text(read, text, expected):
    source = read(text)
    assert messages(source) == [expected]
    assert source.data == {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a: 012", "YAML reads 012 as the number 10", 'write 10 for the number, or "012"'),
        ("a: 1:30", "YAML reads 1:30 as the number 90", 'write 90 for the number, or "1:30"'),
        ("a: .inf", ".inf is not a finite number", "write a finite number"),
        ("a: 2024-99-01", "'2024-99-01' is not a date that can be read", "quote it"),
        ("a: !!int x", "'x' is not a number that can be read", "quote it"),
        ("a: !!bool maybe", "'maybe' is not a boolean that can be read", "quote it"),
        ("a: !!timestamp x", "'x' is not a date that can be read", "quote it"),
        ("a: " + "9" * 5000, "'" + "9" * 40 + "...' is not a number that can be read", "quote"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.sys", "tag"),
        ("a: !!set {b}", "the tag !!set is not read here", "plain YAML only"),
        ("a: !!binary aGk=", "the tag !!binary is not read here", "plain YAML only"),
    ],
)
def test_surprising_scalars_are_refused(read, text, message, hint):
    source = read(text)
    assert [error.where for error in source.errors] == ["model.yaml:1:4"]
    assert source.errors[0].message.startswith(message)
    assert hint in (source.errors[0].hint or "")


@pytest.mark.parametrize("text", ["a: '012'", "a: 0", "a: 10", "a: 0x0f", "a: '1:30'", "a: 0.5"])
def test_ordinary_numbers_and_quoted_text_are_not_surprising(read, text):
    assert read(text).errors == ()


def test_aliases_and_merge_keys(read):
    source = read(
        "base: &base {a: 1, b: 2}\nother: &other {a: 5, c: 3}\n"
        "x:\n  <<: [*base, *other]\n  b: 9\n  same: *base\n"
    )
    assert source.errors == ()
    assert isinstance(source.data, dict)
    assert source.data["x"] == {"a": 1, "c": 3, "b": 9, "same": {"a": 1, "b": 2}}
    assert source.place(("x", "b")) == "model.yaml:5:6"
    assert source.place(("x", "a")) == "model.yaml:1:17"


def test_an_error_behind_an_alias_is_reported_once(read):
    source = read("a: &a {k: 1, k: 2}\nb: *a\nc: *a\n")
    assert messages(source) == ["model.yaml:1:14: the key 'k' stands here again, first in line 1"]


def test_an_alias_bomb_does_not_explode(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    source = read("\n".join(lines))
    assert source.data is None
    assert [error.code for error in source.errors] == ["too-large"]
    assert "more than 100000 values once aliases are expanded" in source.errors[0].message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "an alias holds itself"),
        ("a: &a {b: *a}", "an alias holds itself"),
        ("a: &a {<<: *a}", "'<<' takes a mapping, or a list of mappings, other than the one it"),
        ("a: {<<: 3}", "'<<' takes a mapping, or a list of mappings, other than the one it"),
    ],
)
def test_an_alias_inside_itself_is_refused(read, text, message):
    source = read(text)
    assert len(source.errors) == 1
    assert source.errors[0].message.startswith(message)


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("a:\n\tb: 1\n", "model.yaml:2:1", "found character '\\t'", "spaces: YAML takes no tabs"),
        ("a: b: c\n", "model.yaml:1:5", "mapping values are not allowed here", "indentation"),
        ("a: [1\nb: 2\n", "model.yaml:2:2", "while parsing a flow sequence", None),
        ("a: *x\n", "model.yaml:1:4", "found undefined alias 'x'", "define it above"),
        ("a: 1\n---\nb: 2\n", "model.yaml:2:1", "expected a single document", "one document"),
        ("a: 'x\n", "model.yaml:2:1", "while scanning a quoted scalar", None),
        ("a: b\x07\n", "model.yaml:1:5", "the character U+0007 is not allowed", "remove it"),
        ("[" * 3000, "model.yaml", "nested too deeply", None),
    ],
)
def test_syntax_errors_have_a_place(read, text, place, message, hint):
    source = read(text)
    assert source.data is None
    (error,) = source.errors
    assert (error.where, error.code) == (place, "yaml-syntax")
    assert message in error.message
    assert (hint or "") in (error.hint or "")


def test_unreadable_files(read, tmp_path):
    def only(source: Source) -> str:
        assert source.data is None
        return messages(source)[0]

    assert only(read("")) == "model.yaml: the file is empty"
    assert only(read("# a comment\n")) == "model.yaml: the file is empty"
    assert only(load_yaml(Path("no.yaml"))) == "no.yaml: there is no such file"
    assert only(load_yaml(tmp_path)) == f"{tmp_path}: is a folder"
    assert only(load_yaml(Path("/dev/null"))) == "/dev/null: is not a regular file"
    assert only(read(b"a: 1\nb: \xff\n")) == "model.yaml: is not UTF-8: byte 0xff in line 2"
    large = f"model.yaml: is {MAX_BYTES + 1} bytes long, and at most {MAX_BYTES} are read"
    assert only(read("#" * (MAX_BYTES + 1))) == large


def test_a_byte_order_mark_is_no_part_of_the_first_key(read):
    assert read(b"\xef\xbb\xbfa: 1\n").data == {"a": 1}


def test_overrides_replace_create_and_say_where_they_come_from(read):
    source = read("a:\n  b: 1\n  l: [1, 2]\nempty:\n")
    result = apply_overrides(
        source, ["a.b=[1, {c: 2}]", "a.l.1=9", "new.section.key=x=y", "empty.k=true", "a.b=3"]
    )
    assert result.errors == ()
    assert result.data == {
        "a": {"b": 3, "l": [1, 9]},
        "new": {"section": {"key": "x=y"}},
        "empty": {"k": True},
    }
    assert result.place(("a", "b")) == "--set a.b"
    assert result.place(("a", "l", 1)) == "--set a.l.1"
    assert result.place(("a", "l", 0)) == "model.yaml:3:7"
    assert result.place(("new", "section")) == "--set new.section.key"
    assert source.data == {"a": {"b": 1, "l": [1, 2]}, "empty": None}


def test_a_value_set_whole_takes_its_old_places_along(read):
    result = apply_overrides(read("a:\n  b: {c: 1}\n"), ["a.b={d: 2}"])
    assert result.place(("a", "b", "c")) == "--set a.b"
    assert result.place(("a", "b", "d")) == "--set a.b"


def test_an_override_of_an_alias_leaves_the_original_alone(read):
    result = apply_overrides(read("a: &a {k: 1}\nb: *a\n"), ["b.k=2"])
    assert result.data == {"a": {"k": 1}, "b": {"k": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "--set a: 'a' is not section.key=value"),
        ("a..b=1", "--set a..b: 'a..b' is not a path of keys with dots between them"),
        ("=1", "--set : '' is not a path of keys with dots between them"),
        ("a.b=", "--set a.b: 'a.b' is given no value"),
        ("a.b.c=1", "--set a.b.c: 'a.b' is a value, not a section: 'c' cannot be set in it"),
        ("l.7=1", "--set l.7: 'l' is a list of 1 and has no entry '7'"),
        ("l.x=1", "--set l.x: 'l' is a list of 1 and has no entry 'x'"),
        ("a.b={k: 1, k: 2}", "--set a.b: the key 'k' stands here again, first"),
        ("a.b=012", "--set a.b: YAML reads 012 as the number 10"),
        ("a.b=#x", "--set a.b: the value is empty"),
    ],
)
def test_malformed_overrides(read, override, message):
    source = read("a: {b: 1}\nl: [1]\n")
    result = apply_overrides(source, [override])
    assert messages(result) == [message]
    assert result.data == source.data


def test_an_override_that_is_not_yaml(read):
    (error,) = apply_overrides(read("a: 1"), ["a=[1"]).errors
    assert (error.where, error.code) == ("--set a", "yaml-syntax")


def test_override_value_takes_the_option_as_its_place(read):
    result = override_value(read("a: {b: 1}"), ("a", "b"), "x", label="--target")
    assert result.data == {"a": {"b": "x"}}
    assert (result.place(("a", "b")), result.spelling(("a", "b"))) == ("--target", "x")
