import re
from pathlib import Path

import pytest

from reasonforge.document import Document, read_document
from reasonforge.errors import RequestError


def document(root: Path, text: str | bytes, *overrides: str, **others: str) -> Document:
    for name, content in others.items():
        (root / f"{name}.yaml").write_text(content)
    path = root / "main.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_document(path, overrides)


def refusal(root: Path, text: str | bytes, *overrides: str, **others: str) -> str:
    with pytest.raises(RequestError) as caught:
        document(root, text, *overrides, **others)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{root}/", "")


def test_numbers_are_what_people_mean(tmp_path: Path) -> None:
    found = document(tmp_path, "a: 1e-4\nb: 3E+2\nc: 2.5e-3\nd: 1e\ne: -1e3\nf: 12e03\ng: 0x1f\nh: '1e-4'\n")
    assert found.data == {
        "a": 1e-4,
        "b": 300.0,
        "c": 2.5e-3,
        "d": "1e",
        "e": -1000.0,
        "f": 12000.0,
        "g": 31,
        "h": "1e-4",
    }


def test_a_base_is_overlaid_key_by_key_and_a_choice_or_a_list_replaced(tmp_path: Path) -> None:
    base = "name: base\nengine: {type: trl, steps: 5, rate: 0.1}\nlist: [1, 2]\nkept: {deep: {x: 1, y: 2}}\n"
    found = document(tmp_path, "base: b.yaml\nengine: {steps: 6}\nlist: [3]\nkept: {deep: {y: 3}}\n", b=base)
    assert found.data == {
        "name": "base",
        "engine": {"type": "trl", "steps": 6, "rate": 0.1},
        "list": [3],
        "kept": {"deep": {"x": 1, "y": 3}},
    }
    assert document(tmp_path, "base: b.yaml\nengine: {type: trl, steps: 7}\n", b=base).data["engine"]["rate"] == 0.1
    assert document(tmp_path, "base: b.yaml\nengine: {type: hf}\n", b=base).data["engine"] == {"type": "hf"}
    assert document(tmp_path, "base: b.yaml\nengine: null\n", b=base).data["engine"] is None


def test_every_key_knows_the_line_that_last_set_it(tmp_path: Path) -> None:
    found = document(
        tmp_path,
        "base: b.yaml\nengine:\n  steps: 6\nlist:\n  - {a: 1}\n",
        "engine.warmup=2",
        "new.deep.key=1",
        b="name: x\n\nengine: {type: trl,\n  rate: 1}\nlist: [{a: 1, b: 2}]\n",
    )
    where = {
        path: found.where(path).replace(f"{tmp_path}/", "")
        for path in [
            ("name",),
            ("engine", "type"),
            ("engine", "rate"),
            ("engine", "steps"),
            ("engine", "warmup"),
            ("engine", "unwritten"),
            ("list", 0, "a"),
            ("list", 0, "b"),
            ("new", "deep"),
            ("nowhere",),
            (),
        ]
    }
    assert list(where.values()) == [
        "b.yaml:1: name",
        "b.yaml:3: engine.type",
        "b.yaml:4: engine.rate",
        "main.yaml:3: engine.steps",
        "--set: engine.warmup",
        "main.yaml:2: engine.unwritten",
        "main.yaml:5: list.0.a",
        "main.yaml:5: list.0.b",
        "--set: new.deep",
        "main.yaml: nowhere",
        "main.yaml",
    ]


def test_merge_keys_and_aliases_are_values_of_their_own(tmp_path: Path) -> None:
    text = "one: &one\n  type: t\n  inner: {a: 1}\ntwo:\n  <<: *one\n  type: u\nthree: *one\n"
    found = document(tmp_path, text, "two.inner.a=2")
    assert found.data["two"] == {"type": "u", "inner": {"a": 2}}
    assert found.data["one"]["inner"] == found.data["three"]["inner"] == {"a": 1}
    assert found.where(("two", "type")).endswith("main.yaml:6: two.type")
    assert found.where(("two", "inner", "a")) == "--set: two.inner.a"
    assert found.where(("three",)).endswith("main.yaml:7: three")


def test_merge_keys_over_a_base(tmp_path: Path) -> None:
    base = "one: {engine: {type: t, rate: 1}}\ntwo: {engine: {type: t, rate: 1}}\n"
    text = "base: b.yaml\none: &one\n  engine: {rate: 2}\ntwo:\n  <<: *one\n"
    found = document(tmp_path, text, b=base)
    assert found.data["two"] == found.data["one"] == {"engine": {"type": "t", "rate": 2}}
    assert found.where(("two", "engine", "rate")).endswith("main.yaml:3: two.engine.rate")


@pytest.mark.parametrize(
    ("override", "data"),
    [
        ("a.b=1e-3", {"a": {"b": 1e-3, "c": [1]}}),
        ("a.c=[2, 3]", {"a": {"b": 1, "c": [2, 3]}}),
        ("a.b=", {"a": {"b": None, "c": [1]}}),
        ("a.b=x=y", {"a": {"b": "x=y", "c": [1]}}),
        ("a={b: 2}", {"a": {"b": 2}}),
        ("d.e=true", {"a": {"b": 1, "c": [1]}, "d": {"e": True}}),
    ],
)
def test_overrides(tmp_path: Path, override: str, data: dict) -> None:
    assert document(tmp_path, "a: {b: 1, c: [1]}\n", override).data == data


def test_later_overrides_win_and_forget_the_lines_below(tmp_path: Path) -> None:
    found = document(tmp_path, "a:\n  b: 1\n", "a.b=2", "a={b: 3}")
    assert found.data == {"a": {"b": 3}}
    assert found.where(("a", "b")) == "--set: a.b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "main.yaml:3: a: written twice, first at main.yaml:1; keep one of them"),
        ("a:\n  b: 1\n  b: 1\n", "main.yaml:3: a.b: written twice, first at main.yaml:2; keep one of them"),
        ("a: [1\nb: 2\n", "main.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("a: b: c\n", "main.yaml:1: not YAML: mapping values are not allowed here"),
        ("\ta: 1\n", "main.yaml:1: not YAML: found character '\\t' that cannot start any token"),
        ("a: *nothing\n", "main.yaml:1: not YAML: found undefined alias 'nothing'"),
        ("a: &a [*a]\n", "main.yaml: nested too deeply, or in itself by an alias; flatten it"),
        ("a: 2024-13-45\n", "main.yaml: not YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []\n", "main.yaml:1: not YAML: could not determine a constructor for"),
        ("a: 1\n---\nb: 1\n", "main.yaml:2: not YAML: but found another document"),
        ("a: {1: x}\n", "main.yaml:1: a.1: this key is no text to YAML; quote it"),
        ("on: 1\n", "main.yaml:1: on: this key is no text to YAML; quote it"),
        ("? [a]\n: 1\n", "main.yaml:1: ?: this key is no text to YAML; quote it"),
        ("- a\n", "main.yaml: found list at the top; a mapping of keys is needed"),
        ("", "main.yaml: found NoneType at the top; a mapping of keys is needed"),
        (b"a: \xff\n", "main.yaml: not a text file: not UTF-8 at byte 3"),
        ("a: \0\n", "main.yaml: not YAML: unacceptable character #x0000"),
        ("base: absent.yaml\n", "absent.yaml: no such file"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    assert line in refusal(tmp_path, text)


def test_a_base_has_no_base(tmp_path: Path) -> None:
    line = refusal(tmp_path, "base: b.yaml\n", b="name: x\nbase: c.yaml\n", c="name: c\n")
    assert line == "b.yaml:2: base: a base may not have a base of its own; let main.yaml inherit from c.yaml instead"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("a", "--set a: not of the form KEY=VALUE; for example --set "),
        ("=1", "--set =1: not of the form KEY=VALUE; for example --set "),
        ("a.b.c=1", "--set a.b.c=1: b is not a mapping, so it has no key below it"),
        ("a.c.0=1", "--set a.c.0=1: c is not a mapping, so it has no key below it"),
        ("a.b=[1", "--set a.b=[1: the value '[1' is not YAML; quote it"),
        ("a.b=2024-99-99", "--set a.b=2024-99-99: the value '2024-99-99' is not YAML; quote it"),
    ],
)
def test_a_bad_override_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    assert re.match(re.escape(line), refusal(tmp_path, "a: {b: 1, c: [1]}\n", override))


def test_unreadable_paths_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, line in [
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "file" / "below", "cannot be read: Not a directory"),
        (tmp_path / "absent", "no such file"),
    ]:
        with pytest.raises(RequestError, match=f"^{re.escape(str(path))}: {line}$"):
            read_document(path)
