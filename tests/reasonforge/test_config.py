from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from reasonforge.config import Operational, Strict, key_config, load
from reasonforge.errors import RequestError, nearest


class Exact(Strict):
    type: Literal["exact"] = "exact"


class Judge(Strict):
    type: Literal["judge"] = "judge"
    model: str
    timeout_s: Annotated[float, Operational()] = 5.0


class Inner(Strict):
    width: int = Field(1, gt=0)
    cache: Annotated[str, Operational()] = "here"


class Outer(Strict):
    name: str
    grader: Annotated[Exact | Judge, Field(discriminator="type")] = Exact()
    inner: Inner | None = None
    several: list[Annotated[Exact | Judge, Field(discriminator="type")]] = Field(default_factory=list)
    named: dict[str, Inner] = Field(default_factory=dict)
    sizes: tuple[int, ...] = Field((), strict=False)
    workers: Annotated[int, Operational(), Field(gt=0)] = 2


def problems(root: Path, text: str, *overrides: str) -> list[str]:
    (root / "c.yaml").write_text(text)
    with pytest.raises(RequestError) as caught:
        load(Outer, root / "c.yaml", overrides)
    return str(caught.value).replace(f"{root}/", "").splitlines()


def test_what_is_good_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: x\ngrader: {type: judge, model: m}\nnamed: {a: {width: 3}}\nsizes: [1, 2]\n"
    )
    found = load(Outer, tmp_path / "c.yaml", ["several=[{type: exact}]"])
    assert found == Outer(
        name="x", grader=Judge(model="m"), named={"a": Inner(width=3)}, sizes=(1, 2), several=[Exact()]
    )
    with pytest.raises(ValidationError, match="frozen"):
        found.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nam: x\nname: x\n", "1: nam: unknown key 'nam'; did you mean 'name'?"),
        ("name: x\ninner:\n  widht: 3\n", "3: inner.widht: unknown key 'widht'; did you mean 'width'?"),
        ("name: x\ninner: {zzz: 3}\n", "2: inner.zzz: unknown key 'zzz'; choose one of: cache, width"),
        ("name: 3\n", "1: name: found 3; input should be a valid string"),
        ("name: x\nworkers: '3'\n", "2: workers: found '3'; input should be a valid integer"),
        ("name: x\nworkers: true\n", "2: workers: found True; input should be a valid integer"),
        ("name: x\nworkers: 0\n", "2: workers: found 0; input should be greater than 0"),
        ("inner: {width: 2}\n", " name: missing; it has no default, so it must be given"),
        ("name: x\ninner: 3\n", "2: inner: found 3; a mapping of keys is needed"),
        ("name: x\nnamed: []\n", "2: named: found []; a mapping of keys is needed"),
        ("name: x\ngrader: {}\n", "2: grader: no 'type' is given; choose one of: exact, judge"),
        (
            "name: x\ngrader: {type: jugde}\n",
            "2: grader.type: found 'jugde', which does not exist; did you mean 'judge'?",
        ),
        ("name: x\ngrader: {type: judge}\n", "2: grader.model: missing; it has no default, so it must be given"),
        (
            "name: x\ngrader:\n  type: judge\n  model: m\n  tiemout_s: 2\n",
            "5: grader.tiemout_s: unknown key 'tiemout_s'; did you mean 'timeout_s'?",
        ),
        (
            "name: x\ngrader: {type: judge, model: m, timeout_s: .inf}\n",
            "2: grader.timeout_s: found inf; input should be a finite number",
        ),
        (
            "name: x\nseveral:\n- {type: exact}\n- {type: judge, model: 3}\n",
            "4: several.1.model: found 3; input should be a valid string",
        ),
        ("name: x\nseveral:\n- {model: m}\n", "3: several.0: no 'type' is given; choose one of: exact, judge"),
        ("name: x\nnamed:\n  a: {width: -1}\n", "3: named.a.width: found -1; input should be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, line: str) -> None:
    assert problems(tmp_path, text) == [f"c.yaml:{line}"]


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: 3\nworkers: 0\nx: 1\n") == [
        "c.yaml:1: name: found 3; input should be a valid string",
        "c.yaml:2: workers: found 0; input should be greater than 0",
        "c.yaml:3: x: unknown key 'x'; choose one of: grader, inner, name, named, several, sizes, workers",
    ]


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"name: x\nworkers: {'9' * 300}x\n")
    assert len(line) < 160


def test_the_key_has_no_operational_fields() -> None:
    model = Outer(name="x", grader=Judge(model="m", timeout_s=1.0), inner=Inner(cache="there"), workers=7)
    same = Outer(name="x", grader=Judge(model="m"), inner=Inner(), workers=1)
    assert key_config(model) == key_config(same)
    assert key_config(model) == {
        "name": "x",
        "grader": {"type": "judge", "model": "m"},
        "inner": {"width": 1},
        "several": [],
        "named": {},
        "sizes": [],
    }
    assert key_config(Outer(name="x", named={"a": Inner(cache="x")}, several=[Judge(model="m", timeout_s=2.0)])) == {
        **key_config(Outer(name="x")),
        "named": {"a": {"width": 1}},
        "several": [{"type": "judge", "model": "m"}],
    }


def test_nearest() -> None:
    assert nearest("genrate", ["generate", "grpo"]) == "did you mean 'generate'?"
    assert nearest("x", ["b", "a"]) == "choose one of: a, b"
    assert nearest("x", []) == "nothing can be chosen here"
