import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from killing import run
from pydantic import ValidationError

from data_prep.annotation import DifficultyAnnotation
from data_prep.generation import OpenAIEngine, ProgrammaticTeacher, Sampling
from data_prep.grading import ExactGrader
from data_prep.rewriting import FORMS, JUDGE, Rewriting, rewrite
from reasonforge.artifacts import Artifact, Receipt
from reasonforge.errors import StageError
from reasonforge.files import read_jsonl
from reasonforge.progress import Progress
from recipes.stage import StageContext
from recipes.stages.rewrite import RewriteStage

Rows = list[dict[str, Any]]
Reply = Callable[[str, str], dict[str, Any]]


class Teacher:
    """An OpenAI-compatible server: `reply(thinking, answer)` makes the message of what stands in the prompt."""

    def __init__(self, reply: Reply) -> None:
        self.asked: Counter[str] = Counter()
        self.prompts: list[str] = []
        self.started, self.go_on = threading.Event(), threading.Event()
        self.hold_after: int | None = None
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompt = body["messages"][0]["content"]
                if teacher.hold_after is not None and sum(teacher.asked.values()) >= teacher.hold_after:
                    teacher.started.set()
                    teacher.go_on.wait(60)
                teacher.asked[prompt] += 1
                teacher.prompts.append(prompt)
                thinking, answer = (
                    re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.S)[0] for tag in ("thinking", "answer")
                )
                message = {"role": "assistant", "finish_reason": "stop", **reply(thinking, answer)}
                choice = {"index": 0, "finish_reason": message.pop("finish_reason"), "message": message}
                sent = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                data = json.dumps(sent).encode()
                try:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:  # who asked was killed
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def engine(self) -> OpenAIEngine:
        return OpenAIEngine(base_url=f"http://127.0.0.1:{self.server.server_port}/v1", model="scribe", concurrency=3)

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def teacher() -> Iterator[Callable[[Reply], Teacher]]:
    made: list[Teacher] = []

    def make(reply: Reply) -> Teacher:
        made.append(Teacher(reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def traces(sums: Rows, tmp_path: Path) -> Path:
    """Two traces of each of twelve sums, each with a long way round; every fourth has a wrong answer."""
    path = tmp_path / "plain.jsonl"
    ProgrammaticTeacher(hasty_rate=0.0, wrong_rate=0.0).generate(
        sums, Sampling(samples=2), destination=path, scratch=tmp_path / "make", seed=0, progress=Progress
    )
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows):
        row["response"] = row["response"].replace("<think>", "<think>\nHm, let me see. " + "Wait. " * 20)
        if number % 4 == 3:
            row["response"] = re.sub(r"boxed\{.*\}", "boxed{no}", row["response"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reply_of(thinking: str, answer: str) -> str:
    return f"<thinking>\n{thinking}\n</thinking>\n<answer>\n{answer}\n</answer>"


def shortened(thinking: str, answer: str) -> dict[str, Any]:
    return {"content": "Here it is.\n" + reply_of(thinking.split("Wait. ")[-1].strip(), answer)}


def rewritten(config: Rewriting, traces: Path, root: Path, **options: Any) -> tuple[Rows, dict[str, Any]]:
    counts = rewrite(
        traces, root / "traces.jsonl", config, ExactGrader(), scratch=root / "scratch", seed=3, workers=1,
        progress=Progress, **options,
    )  # fmt: skip
    return list(read_jsonl(root / "traces.jsonl")), counts


def test_correct_traces_become_shorter(traces: Path, tmp_path: Path, teacher: Callable[[Reply], Teacher]) -> None:
    server = teacher(shortened)
    before = list(read_jsonl(traces))
    rows, counts = rewritten(Rewriting(engine=server.engine), traces, tmp_path / "out")
    assert [row["id"] for row in rows] == [row["id"] for row in before]
    assert counts["rewritten"] == 18
    assert counts["not_rewritten_not_correct"] == 6
    assert counts["characters_after"] < 0.7 * counts["characters_before"]
    assert len(server.prompts) == 18
    for old, new in zip(before, rows, strict=True):
        if "no}" in old["response"]:
            assert new == {**old, "rewritten": "not correct"}
            continue
        assert new["rewritten"] == "yes"
        assert new["rewriter"] == "scribe"
        assert new["teacher"] == old["teacher"]
        assert new["completion_tokens"] is None
        assert new["original_characters"] == len(old["response"])
        assert re.fullmatch(r"<think>\n.+\n</think>\n\n\\boxed\{\d+\}", new["response"], re.S)
        assert "Wait" not in new["response"]
        assert "verdict" not in new


REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({"content": reply_of("short", "ANSWER")}, "yes"),
    "reasoner": ({"reasoning_content": "<thinking>x</thinking>", "content": reply_of("short", "ANSWER")}, "yes"),
    "wrong": ({"content": reply_of("short", r"\boxed{77}")}, "the answer is wrong"),
    "unboxed": ({"content": reply_of("short", "It is so.")}, "the answer is unparseable_answer"),
    "long": ({"content": reply_of("word " * 200, "ANSWER")}, "not shorter"),
    "bare": ({"content": "short\nANSWER"}, "the reply has no thinking and answer"),
    "empty": ({"content": reply_of("", "ANSWER")}, "the reply has no thinking and answer"),
    "nested": ({"content": reply_of("a</think>b", "ANSWER")}, "the reply has no thinking and answer"),
    "more": ({"content": reply_of("draft", "9") + reply_of("short", "ANSWER") + "\nDone."}, "yes"),
    "cut": ({"content": reply_of("short", "ANSWER"), "finish_reason": "length"}, "the reply was cut off"),
}


def test_what_does_not_pass_stays_or_goes(tmp_path: Path, teacher: Callable[[Reply], Teacher]) -> None:
    rows: Rows = [
        {"id": f"{name}/0", "problem_id": name, "sample": 0, "prompt": "What is 5 + 5?", "answer": "10",
         "response": f"<think>\n{name} {'long ' * 60}\n</think>\n\\boxed{{10}}", "finish_reason": "stop",
         "prompt_tokens": 5, "completion_tokens": 9, "teacher": "t"}
        for name in REPLIES
    ]  # fmt: skip
    others = {
        "not correct": {"response": "<think>\nx\n</think>\n\\boxed{9}"},
        "cut off": {"finish_reason": "length"},
        "no thinking": {"response": "\\boxed{10}"},
    }
    rows += [{**rows[0], "id": f"{name}/0", "problem_id": name, **changes} for name, changes in others.items()]
    traces = tmp_path / "traces.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(thinking: str, answer: str) -> dict[str, Any]:
        message, _ = REPLIES[thinking.split()[0]]
        return {**message, "content": message["content"].replace("ANSWER", answer)}

    server = teacher(reply)
    expected = {**{name: said for name, (_, said) in REPLIES.items()}, **{name: name for name in others}}
    found, _ = rewritten(Rewriting(engine=server.engine), traces, tmp_path / "keep")
    assert {row["problem_id"]: row["rewritten"] for row in found} == expected
    for old, new in zip(rows, found, strict=True):
        if new["rewritten"] == "yes":
            assert new["response"] == "<think>\nshort\n</think>\n\n\\boxed{10}"
        else:
            assert new == {**old, "rewritten": new["rewritten"]}
    assert not (tmp_path / "keep" / "dropped.jsonl").exists()
    found, counts = rewritten(Rewriting(engine=server.engine, failed="drop"), traces, tmp_path / "drop")
    assert [row["problem_id"] for row in found] == ["good", "reasoner", "more", *others]
    dropped = list(read_jsonl(tmp_path / "drop" / "dropped.jsonl"))
    assert [row["problem_id"] for row in dropped] == [name for name, (_, said) in REPLIES.items() if said != "yes"]
    assert all(row["dropped_by"] == "rewrite" and row["reason"] == expected[row["problem_id"]] for row in dropped)
    assert counts["samples"] + len(dropped) == len(rows)
    lax, _ = rewritten(Rewriting(engine=server.engine, max_ratio=0.05), traces, tmp_path / "strict")
    assert not [row for row in lax if row["rewritten"] == "yes"]


def test_the_form_goes_by_the_difficulty(traces: Path, tmp_path: Path, teacher: Callable[[Reply], Teacher]) -> None:
    server = teacher(shortened)

    def forms(name: str, source: Path, **options: Any) -> Counter[str]:
        server.prompts.clear()
        rows, _ = rewritten(Rewriting(engine=server.engine, **options), source, tmp_path / name)
        assert all("pass_rate" not in row for row in rows)
        known = {**FORMS, "judged": JUDGE}
        return Counter(form for prompt in server.prompts for form, text in known.items() if text in prompt)

    assert forms("judged", traces) == {"judged": 18}
    assert forms("counted", traces, difficulty=DifficultyAnnotation(min_traces=2)) == {"easy": 12, "medium": 6}
    rows = [{**row, "difficulty": "hard"} for row in read_jsonl(traces)]
    told = tmp_path / "told.jsonl"
    told.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert forms("told", told) == {"hard": 18}


@pytest.mark.parametrize(
    "options",
    [{"prompt": "$problem $thinking"}, {"prompt": "$problem $thinking $answer $x"}, {"sampling": Sampling(samples=2)}],
)
def test_what_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rewriting(engine=OpenAIEngine(base_url="http://x", model="m"), **options)


JOB = """
import sys
from pathlib import Path
from data_prep.generation import OpenAIEngine
from data_prep.grading import ExactGrader
from data_prep.rewriting import Rewriting, rewrite
from reasonforge.progress import Progress

url, traces, root = sys.argv[1:]
config = Rewriting(engine=OpenAIEngine(base_url=url, model="scribe", concurrency=3))
rewrite(Path(traces), Path(root) / "traces.jsonl", config, ExactGrader(), scratch=Path(root) / "scratch", seed=3,
        workers=1, progress=Progress)
"""


def test_after_a_kill_only_what_was_not_answered_is_asked(
    traces: Path, tmp_path: Path, teacher: Callable[[Reply], Teacher]
) -> None:
    script, now = tmp_path / "job.py", tmp_path / "now"
    script.write_text(JOB)
    whole = teacher(shortened)
    rewritten(Rewriting(engine=whole.engine), traces, tmp_path / "whole")
    server = teacher(shortened)
    server.hold_after = 7
    threading.Thread(target=lambda: server.started.wait(60) and now.touch(), daemon=True).start()
    assert run(script, server.engine.base_url, traces, tmp_path / "killed", kill_at=now)
    journal = tmp_path / "killed" / "scratch" / "replies" / "journal.jsonl"
    answered = len(journal.read_text().splitlines())
    assert 4 <= answered <= 7
    before = sum(server.asked.values())
    server.hold_after = None
    server.go_on.set()
    assert not run(script, server.engine.base_url, traces, tmp_path / "killed")
    assert len(journal.read_text().splitlines()) == 18
    assert sum(server.asked.values()) <= before + (18 - answered) + 3
    assert (tmp_path / "killed" / "traces.jsonl").read_bytes() == (tmp_path / "whole" / "traces.jsonl").read_bytes()


def test_an_endpoint_that_is_away_is_told(traces: Path, tmp_path: Path) -> None:
    engine = OpenAIEngine(base_url="http://127.0.0.1:9/v1", model="m", max_retries=0)
    with pytest.raises(StageError, match="18 of 18 traces failed"):
        rewritten(Rewriting(engine=engine), traces, tmp_path / "away")


def test_the_stage_gives_traces_for_curate(traces: Path, tmp_path: Path, teacher: Callable[[Reply], Teacher]) -> None:
    server = teacher(shortened)
    given_traces = tmp_path / "given"
    for place in (given_traces, tmp_path / "out", tmp_path / "scratch"):
        place.mkdir()
    traces.rename(given_traces / "traces.jsonl")
    engine = {"type": "openai", "base_url": server.engine.base_url, "model": "scribe"}
    options = {"inputs": {"traces": "generate"}, "grader": {"type": "exact"}, "rewriting": {"engine": engine}}
    stage = RewriteStage.model_validate(options)
    assert [(ref.name, ref.kind) for ref in stage.input_refs()] == [("traces", "traces")]
    assert stage.needs == ("openai",)
    assert stage.external_files == ()
    assert stage.engine.type == "openai"
    artifacts = {"traces": Artifact(given_traces, cast(Receipt, None))}
    counts = stage.run(
        StageContext("rewrite", 5, artifacts, tmp_path / "out", tmp_path / "scratch", tmp_path / "progress.json")
    )
    assert counts["samples"] == 24
    assert counts["rewritten"] == 18
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["traces.jsonl"]
