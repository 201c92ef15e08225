"""The vllm engine without a server: its command line, its options, what a journal's key depends on; several engines."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter, ValidationError

from data_prep.commands.generate import generate
from data_prep.generation import ChatRequest, Engine, Sampling, SeveralEngines, VLLMEngine, vllm
from data_prep.generation.vllm import command_line, model_identity
from reasonforge.config import Strict, load_options
from reasonforge.errors import RequestError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.generate import GenerateStage

ALWAYS = "--host 127.0.0.1 --port 8123 --served-model-name"


def test_the_command_line_of_the_defaults() -> None:
    assert shlex.join(command_line(VLLMEngine(), "/models/Qwen3-8B", 8123, 7)) == (
        f"vllm serve /models/Qwen3-8B {ALWAYS} Qwen3-8B --tensor-parallel-size 1 --gpu-memory-utilization 0.9 "
        "--max-num-seqs 256 --dtype auto --kv-cache-dtype auto --seed 7 --generation-config vllm "
        "--disable-uvicorn-access-log"
    )


def test_the_command_line_of_all_options() -> None:
    engine = VLLMEngine(
        served_name="a teacher",
        chat_template="/t/it's.jinja",
        reasoning_parser="deepseek_r1",
        dtype="bfloat16",
        quantization="fp8",
        kv_cache_dtype="fp8_e4m3",
        max_model_len=40_960,
        tensor_parallel=4,
        gpu_memory_utilization=0.85,
        max_num_seqs=64,
        enforce_eager=True,
        executable=["/opt/v llm/bin/python", "-m", "vllm.entrypoints.cli.main", "serve"],
        extra_arguments=["--hf-overrides", '{"a": "$HOME"}', "--enable-expert-parallel"],
    )
    command = command_line(engine, "Qwen/Qwen3-8B", 8123, 0)
    assert shlex.join(command) == (
        f"'/opt/v llm/bin/python' -m vllm.entrypoints.cli.main serve Qwen/Qwen3-8B {ALWAYS} 'a teacher' "
        "--tensor-parallel-size 4 --gpu-memory-utilization 0.85 --max-num-seqs 64 --dtype bfloat16 "
        "--kv-cache-dtype fp8_e4m3 --seed 0 --generation-config vllm --disable-uvicorn-access-log "
        "--max-model-len 40960 --quantization fp8 --reasoning-parser deepseek_r1 "
        "--chat-template '/t/it'\"'\"'s.jinja' --enforce-eager --hf-overrides '{\"a\": \"$HOME\"}' "
        "--enable-expert-parallel"
    )
    assert shlex.split(shlex.join(command)) == command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra_arguments": ["--port=1"]}, "extra_arguments has '--port=1', which is not for there"),
        ({"extra_arguments": ["-tp", "2"]}, "extra_arguments has '-tp'"),
        ({"extra_arguments": ["--tensor_parallel_size", "2"]}, "extra_arguments has '--tensor_parallel_size'"),
        ({"extra_arguments": ["--tensor-par=2"]}, "extra_arguments has '--tensor-par=2'"),
        ({"extra_arguments": ["--headless"]}, "extra_arguments has '--headless'"),
        ({"extra_arguments": ["--api-key", "k"]}, "extra_arguments has '--api-key'"),
        ({"extra_body": {"chat_template_kwargs": {}}}, "the engine's own chat_template_kwargs"),
        ({"executable": []}, "at least 1 item"),
        ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VLLMEngine(**options)


def key(engine: VLLMEngine, model: Path, scratch: Path, **request: Any) -> str:
    given = {"messages": [{"role": "user", "content": "a"}], "sampling": Sampling(), "seed": 1, **request}
    return engine.service(scratch=scratch, seed=0, model=model).key(ChatRequest(**given))


def test_a_key_holds_what_decides_the_answer_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    engine = VLLMEngine(executable=["true"], replicas=1)
    first = key(engine, tiny_model, tmp_path)
    moved = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    assert key(engine, moved, tmp_path / "other") == first
    same = {"replicas": 3, "max_num_seqs": 8, "enforce_eager": True, "start_s": 1.0, "executable": ["env", "true"]}
    for name, value in same.items():
        assert key(engine.model_copy(update={name: value}), tiny_model, tmp_path) == first, name
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    other = {
        "chat_template_kwargs": {"enable_thinking": False}, "dtype": "float16", "quantization": "fp8",
        "kv_cache_dtype": "fp8", "reasoning_parser": "qwen3", "extra_body": {"top_k": 20}, "send_seed": False,
        "chat_template": str(tmp_path / "t.jinja"), "extra_arguments": ["--revision", "main"], "max_model_len": 99,
    }  # fmt: skip
    keys = [key(engine.model_copy(update={name: value}), tiny_model, tmp_path) for name, value in other.items()]
    asked: list[dict[str, Any]] = [
        {"sample": 1}, {"seed": 2}, {"sampling": Sampling(temperature=0.6)}, {"sampling": Sampling(top_p=0.9)},
        {"sampling": Sampling(max_tokens=9)}, {"messages": [{"role": "system", "content": "a"}]},
    ]  # fmt: skip
    keys += [key(engine, tiny_model, tmp_path, **request) for request in asked]
    (moved / "model.safetensors").write_bytes((moved / "model.safetensors").read_bytes()[:-1] + b"\1")
    keys.append(key(engine, moved, tmp_path))
    assert len({first, *keys}) == 1 + len(keys)
    assert key(engine, tiny_model, tmp_path, about={"for": "people"}, sampling=Sampling(samples=9)) == first


def test_a_large_file_is_told_by_blocks_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_WHOLE", 1000)
    monkeypatch.setattr(vllm, "_BLOCK", 10)
    content = bytearray(64 * 10 * 3)
    (tmp_path / "weights").write_bytes(content)
    first = model_identity(str(tmp_path))
    found = set()
    for place in (0, 5, len(content) // 2 // 30 * 30 + 1, len(content) - 1):
        changed = bytearray(content)
        changed[place : place + 30] = b"\1" * len(changed[place : place + 30])
        (tmp_path / "weights").write_bytes(changed)
        found.add(model_identity(str(tmp_path)))
    assert len(found - {first}) == 4


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert model_identity("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    with pytest.raises(RequestError, match="no such model directory"):
        model_identity(str(tmp_path / "none"))
    with pytest.raises(RequestError, match=r"^engine.model_path: not given"):
        VLLMEngine(executable=["true"]).service(scratch=tmp_path, seed=0, model=None)


PROGRAMMATIC = [{"type": "programmatic"}, {"type": "programmatic", "wrong_rate": 1.0}]


def test_several_teachers_answer_every_problem(sums: list[dict[str, str]], tmp_path: Path) -> None:
    engines = [TypeAdapter(Engine).validate_python(options) for options in PROGRAMMATIC]
    several = SeveralEngines.model_validate({"engines": PROGRAMMATIC})
    alone = []
    for number, engine in enumerate([*engines, several]):
        place = tmp_path / str(number)
        counts = engine.generate(
            sums, Sampling(samples=2), destination=place / "traces.jsonl", scratch=place, seed=3, progress=Progress
        )
        alone.append(list(read_jsonl(place / "traces.jsonl")))
    rows = alone.pop()
    assert counts["samples"] == 48
    assert [row["id"] for row in rows] == [f"{problem['id']}/{sample}" for problem in sums for sample in range(4)]
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 12
    for number, of_one in enumerate(alone):
        taken = [row["response"] for row in rows if row["sample"] // 2 == number]
        assert taken == [row["response"] for row in of_one]


class Options(Strict):
    """A document with an engine."""

    engine: Engine


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{type: several, engines: [{type: programmatic}, {type: vlm}]}", "did you mean 'vllm'"),
        ("{type: several, engines: [{type: programmatic}]}", "at least 2 items"),
        ("{type: several, engines: [{type: programmatic}, {type: vllm}]}", r"engines\[1\].model_path is not given"),
        ("{type: vllm, tensor_paralel: 2}", "did you mean 'tensor_parallel'"),
    ],
)
def test_mistakes_are_told(given: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load_options(Options, None, [f"engine={given}"])


def test_answers_longer_than_the_context_are_refused_before_anything_starts(tmp_path: Path) -> None:
    engine = {"type": "vllm", "model_path": "m", "max_model_len": 98}
    options = {"inputs": {"problems": "problems"}, "sampling": {"max_tokens": 99}}
    said = "sampling.max_tokens, 99, is more than engine.max_model_len, 98, which vLLM refuses"
    for asked in (engine, {"type": "several", "engines": [{"type": "programmatic"}, engine]}):
        with pytest.raises(ValidationError, match=said):
            GenerateStage.model_validate({**options, "engine": asked})
    config = tmp_path / "options.yaml"
    config.write_text(json.dumps({"engine": engine, "sampling": {"max_tokens": 99}}))
    refused = CliRunner().invoke(generate, [str(tmp_path / "p"), str(tmp_path / "t"), "--config", str(config)])
    assert isinstance(refused.exception, RequestError)
    assert said in str(refused.exception)


def test_stages_take_vllm_as_they_take_hf(tiny_model: Path) -> None:
    problems = {"problems": "problems"}
    own = {"type": "vllm", "model_path": str(tiny_model)}
    stage = GenerateStage.model_validate({"inputs": problems, "engine": own})
    assert tiny_model / "model.safetensors" in stage.external_files
    assert stage.needs == ("openai", "vllm")
    with pytest.raises(ValidationError, match="both are given"):
        GenerateStage.model_validate({"inputs": {**problems, "teacher": "base"}, "engine": own})
    with pytest.raises(ValidationError, match="neither is given"):
        GenerateStage.model_validate({"inputs": problems, "engine": {"type": "vllm"}})
    evaluate = {"inputs": {**problems, "model": "base"}, "sampling": {}, "grader": {"type": "exact"}}
    engine = {"type": "vllm", "tensor_parallel": 4}
    assert EvaluateStage.model_validate({**evaluate, "engine": engine}).external_files == ()
    for stage_type, options in (
        (EvaluateStage, {**evaluate, "engine": engine}),
        (GenerateStage, {"inputs": problems, "engine": {**own, "tensor_parallel": 4}}),
        (GenerateStage, {"inputs": problems, "engine": {"type": "several", "engines": [own, {**own, "replicas": 3}]}}),
    ):
        with pytest.raises(ValidationError, match=r"GPUs are needed, but there are 2"):
            stage_type.model_validate({**options, "resources": {"gpus_per_node": 2}})
