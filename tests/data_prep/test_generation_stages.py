import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from reasonforge.artifacts import Artifact, Receipt
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from recipes.stage import StageContext
from recipes.stages.generate import GenerateStage
from recipes.stages.problems import ProblemsStage

PROGRAMMATIC = {"type": "programmatic", "hasty_rate": 0.15, "wrong_rate": 0.05}


def context(root: Path, **inputs: Path) -> StageContext:
    (root / "out").mkdir(parents=True)
    (root / "scratch").mkdir()
    artifacts = {name: Artifact(path, cast(Receipt, None)) for name, path in inputs.items()}
    return StageContext("stage", 5, artifacts, root / "out", root / "scratch", root / "progress.json")


def generate(engine: dict[str, Any], **options: Any) -> GenerateStage:
    inputs = {"problems": "problems", **({"teacher": options.pop("teacher")} if "teacher" in options else {})}
    return GenerateStage.model_validate({"inputs": inputs, "engine": engine, **options})


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    stage = ProblemsStage.model_validate({"source": {"type": "running_sum", "train": 20, "eval": 5}})
    where = context(tmp_path / "problems")
    assert stage.run(where) == {"train": 20, "eval": 5}
    assert stage.needs == stage.external_files == ()
    return where.out


def test_problems_and_traces_of_either_split(problems: Path, tmp_path: Path) -> None:
    for split, count in (("train", 20), ("eval", 5)):
        where = context(tmp_path / split, problems=problems)
        stage = generate(PROGRAMMATIC, split=split, sampling={"samples": 2})
        assert stage.run(where) == {"problems": count, "samples": 2 * count, "finished_stop": 2 * count}
        rows = list(read_jsonl(where.out / "traces.jsonl"))
        asked = list(read_jsonl(problems / f"{split}.jsonl"))
        assert [row["prompt"] for row in rows[::2]] == [row["prompt"] for row in asked]
        assert json.loads((tmp_path / split / "progress.json").read_text())["done"] == count


def test_a_teacher_that_another_stage_made(problems: Path, tmp_path: Path, tiny_model: Path) -> None:
    stage = generate({"type": "hf"}, teacher="base", split="eval", sampling={"max_tokens": 4})
    assert [(ref.name, ref.kind) for ref in stage.input_refs()] == [
        ("problems", "problems"),
        ("teacher", "hf_checkpoint"),
    ]
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_model, teacher)
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n")
    where = context(tmp_path / "generate", problems=problems, teacher=teacher)
    counts = stage.run(where)
    assert (counts["samples"], counts["licences"]) == (5, {"teacher": "mit"})
    assert next(read_jsonl(where.out / "traces.jsonl"))["teacher"] == "teacher"


def test_a_teacher_directory_counts_into_the_stage_key(tiny_model: Path) -> None:
    assert tiny_model / "model.safetensors" in generate({"type": "hf", "model_path": str(tiny_model)}).external_files
    assert generate({"type": "hf", "model_path": "Qwen/Qwen3-8B"}).external_files == ()
    assert generate(PROGRAMMATIC).external_files == ()


def test_engines_say_what_they_need() -> None:
    assert generate(PROGRAMMATIC).needs == ()
    assert generate({"type": "hf", "model_path": "m"}).needs == ("torch", "transformers")
    assert generate({"type": "openai", "base_url": "u", "model": "m"}).needs == ("openai",)


@pytest.mark.parametrize(
    ("engine", "teacher", "expected"),
    [
        (PROGRAMMATIC, "base", "an engine of type programmatic takes no model"),
        ({"type": "hf"}, None, "from inputs.teacher or from engine.model_path, but neither is given"),
        ({"type": "hf", "model_path": "m"}, "base", "both are given"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(engine: dict[str, Any], teacher: str | None, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        generate(engine, teacher=teacher)


def test_no_problems_are_a_request_error(tmp_path: Path) -> None:
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "train.jsonl").touch()
    with pytest.raises(RequestError, match="no problems to answer"):
        generate(PROGRAMMATIC).run(context(tmp_path / "generate", problems=tmp_path / "problems"))
