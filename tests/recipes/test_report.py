"""The report from sealed artifacts: its JSON, its page and its Markdown, also where something is missing or hostile."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reasonforge.artifacts import Artifact, Cost, InputRecord, Receipt, content_digest, hash_files, seal
from reasonforge.errors import RequestError
from reasonforge.files import write_json, write_jsonl
from reasonforge.progress import duration
from recipes.evaluation.scoring import Interval, score
from recipes.report.charts import linear_axis
from recipes.report.curves import smoothed, thinned
from recipes.report.transcripts import shortened, split_thinking
from recipes.report.wording import Pair, finding, points, size
from recipes.stage import StageContext
from recipes.stages.report import ReportInputs, ReportStage

SAMPLING = {"samples": 8, "temperature": 1.0, "top_p": 1.0, "max_tokens": 80}
HOSTILE = '</pre><script>alert(1)</script><img src="https://evil.example/x.png">&amp;\'"'


def sealed(folder: Path, stage, stage_type, kind, inputs=None, ancestors=(), wall=12.5, order=0) -> Artifact:
    """A directory made an artifact, with the receipt that run_stage would have given it."""
    files = hash_files(folder)
    cost = Cost(
        started_at=f"2026-01-02T03:{order:02d}:00+00:00",
        wall_s=wall,
        cpu_s=wall * 1.7,
        peak_rss_bytes=512 * 2**20,
        attempt=1 + (stage_type == "distill"),
    )
    lineage = {}
    for ancestor in ancestors:
        receipt = ancestor.receipt
        lineage |= receipt.lineage
        lineage[receipt.stage] = {
            "type": receipt.stage_type,
            "kind": receipt.kind,
            "key": receipt.key,
            "digest": receipt.digest,
            "cost": receipt.cost.model_dump(mode="json"),
        }
    receipt = Receipt(
        stage=stage,
        stage_type=stage_type,
        kind=kind,
        key=content_digest(files)[::-1],
        config={},
        inputs={
            name: InputRecord(stage=a.receipt.stage, kind=a.receipt.kind, digest=a.digest)
            for name, a in (inputs or {}).items()
        },
        files=files,
        digest=content_digest(files),
        counts={},
        environment={"python": "3.11"},
        cost=cost,
        lineage=lineage,
    )
    return seal(folder, receipt)


def problems(count):
    generator = random.Random(0)
    rows = []
    for number in range(count):
        total = generator.randint(3, 17)
        lines, start = [], total
        for letter in "abcdef"[: generator.randint(3, 6)]:
            change = generator.choice([c for c in range(-9, 10) if c and 0 <= total + c <= 20])
            lines.append((letter, change, total, total := total + change))
        prompt = f"Start: {start}\n" + "\n".join(f"{letter}{change:+d}" for letter, change, _, _ in lines)
        thoughts = [f"{letter}{change:+d}:{before}{change:+d}={after}" for letter, change, before, after in lines]
        rows.append({"id": f"sum-{number:04d}", "prompt": prompt, "answer": str(total), "thoughts": thoughts})
    return rows


def evaluation(folder: Path, asked, chance, ancestors=(), order=0, wall=6.0, sampling=SAMPLING, response=None):
    """An evaluate stage's artifact: `chance(generator)` gives a problem's chance of a right sample."""
    generator = random.Random(folder.name)
    rows = []
    for problem in asked:
        likely = chance(generator)
        rows += [_sample(problem, number, likely, generator, response) for number in range(sampling["samples"])]
    folder.mkdir(parents=True)
    write_jsonl(folder / "samples.jsonl", rows)
    scores = score(
        rows,
        asked,
        where="samples.jsonl",
        sampling=sampling,
        grader={"type": "exact"},
        equivalent=lambda pairs: [False] * len(pairs),
        resamples=2000,
    )
    write_json(folder / "scores.json", scores.model_dump(mode="json"))
    return sealed(folder, folder.name, "evaluate", "scores", ancestors=ancestors, order=order, wall=wall)


def _sample(problem, number, likely, generator, response):
    right, silent = generator.random() < likely, generator.random() < 0.04
    answer = problem["answer"] if right else str(generator.randint(0, 20)) + ("" if generator.random() < 0.5 else "0")
    thoughts = problem["thoughts"][: None if generator.random() < likely else generator.randint(0, 3)]
    body = "<think>\n" + "\n".join(thoughts)
    text = response or (body if silent else f"{body}\n</think>\n\\boxed{{{answer}}}")
    right = right and not silent
    return {
        "id": f"{problem['id']}/{number}",
        "problem_id": problem["id"],
        "sample": number,
        "prompt": problem["prompt"],
        "answer": problem["answer"],
        "response": text,
        "finish_reason": "length" if silent else "stop",
        "completion_tokens": 80 if silent else 6 + 8 * len(thoughts),
        "verdict": "correct" if right else "unparseable_answer" if silent else "wrong",
        "extracted": None if silent else answer,
    }


def dataset(folder: Path, ancestors=(), order=0, traces=8000, hostile=""):
    folder.mkdir(parents=True)
    steps, left, dropped, examples = [], traces, [], {}
    reasons = {
        "verification": {"wrong": traces // 20, "unparseable_answer": traces // 160},
        "truncation": {"finish_reason_length": traces // 100},
        "thinking": {"unclosed": traces // 200, "repeated": traces // 400},
        "length": {},
        "exact_duplicates": {"same_prompt_and_response": traces // 9},
        "decontamination": {"shares_8_words_with_evaluation": traces // 250},
    }
    for step, found in reasons.items():
        steps.append({"step": step, "in": left, "out": left - sum(found.values()), "dropped": found})
        left -= sum(found.values())
        for number, reason in enumerate(found):
            row = {
                "id": f"{step}-{number}/0",
                "prompt": "Start: 9\na+3\nb-1",
                "response": f"<think>\na+3:9+3=13{hostile}",
            }
            dropped.append({**row, "dropped_by": step, "reason": reason})
            examples.setdefault(step, []).append(row["id"])
    write_jsonl(folder / "dropped.jsonl", dropped)
    verdicts = {"correct": traces - sum(reasons["verification"].values()), "wrong": traces // 20}
    write_json(folder / "funnel.json", {"steps": steps, "verdicts": verdicts, "examples": examples})
    return sealed(folder, folder.name, "curate", "dataset", ancestors=ancestors, order=order, wall=9.0)


def checkpoint(folder: Path, stage_type, rows, ancestors=(), order=0, wall=60.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if rows is not None:
        write_jsonl(folder / "metrics.jsonl", rows)
    return sealed(folder, folder.name, stage_type, "hf_checkpoint", ancestors=ancestors, order=order, wall=wall)


def supervised(steps, start=4.5, end=0.3):
    generator = random.Random(steps)
    for step in range(10, steps + 1, 10):
        fall = 2.718 ** (-6 * step / steps)
        loss = end + (start - end) * fall + generator.gauss(0, 0.03 + 0.1 * fall)
        yield {
            "step": step,
            "loss": loss,
            "mean_token_accuracy": 1 - 0.9 * fall - 0.05 * generator.random(),
            "time": 1.0,
        }


def reinforced(steps):
    generator = random.Random(steps)
    for step in range(1, steps + 1):
        done = 1 - 2.718 ** (-3 * step / steps)
        yield {
            "step": step,
            "loss": 0.0,
            "reward": 0.5 + 0.33 * done + generator.gauss(0, 0.04),
            "completions/mean_length": 31 + 9 * done + generator.gauss(0, 0.8),
            "completions/clipped_ratio": max(0.0, generator.gauss(0.01, 0.01)),
            "entropy": None if step == 1 else 0.09 - 0.06 * done + generator.gauss(0, 0.004),
            "kl": 0.0,
        }


def make_inputs(root: Path, count=40, samples=8, response=None, hostile=""):
    """The three-model run of the tiny recipe, fabricated."""
    asked = problems(count)
    sampling = SAMPLING | {"samples": samples}
    (root / "problems").mkdir(parents=True)
    made = sealed(root / "problems", "problems", "problems", "problems", wall=0.4)
    curve = list(supervised(100, 5.6, 2.1))
    base = checkpoint(root / "base", "base_model", curve, [made], 1, 2.4)
    data = dataset(root / "curate", [made], 2, hostile=hostile)
    distill = checkpoint(root / "distill", "distill", list(supervised(1100, 3, 0.25)), [base, data], 3, 71.0)
    grpo = checkpoint(root / "grpo", "grpo", list(reinforced(120)), [distill], 4, 84.0)
    chances = {
        "base": lambda g: g.betavariate(0.6, 7.5),
        "distilled": lambda g: g.betavariate(2.0, 1.8),
        "grpo": lambda g: g.betavariate(4.0, 0.9),
    }
    scores = {
        name: evaluation(root / f"evaluate-{name}", asked, chances[name], [model], 5 + i, 6.1 + i, sampling, response)
        for i, (name, model) in enumerate({"base": base, "distilled": distill, "grpo": grpo}.items())
    }
    inputs = {f"scores.{name}": artifact for name, artifact in scores.items()}
    inputs |= {"dataset": data, "training.base": base, "training.distilled": distill, "training.grpo": grpo}
    return inputs


def run_report(inputs, folder: Path, **options):
    out = folder / "out"
    out.mkdir(parents=True)
    scores = {name.partition(".")[2]: "x" for name in inputs if name.startswith("scores.")}
    stage = ReportStage(inputs=ReportInputs(scores=scores), resamples=500, **options)
    counts = stage.run(StageContext("report", 0, inputs, out, folder, folder / "progress.json"))
    return (
        json.loads((out / "report.json").read_text()),
        (out / "index.html").read_text(),
        (out / "report.md").read_text(),
        counts,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    inputs = make_inputs(root)
    return inputs, *run_report(inputs, root / "report")


class Checker(HTMLParser):
    """Every tag closed in order, and every attribute kept."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def check_page(text):
    """The page is well formed, runs nothing and fetches nothing."""
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert text.startswith("<!doctype html>")
    assert not {"script", "img", "link", "iframe", "object"} & set(checker.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in checker.attributes}
    assert not any(name.startswith("on") for name, _ in checker.attributes)
    assert "url(" not in text
    assert "@import" not in text


def test_json_has_what_machines_are_promised(whole):
    _, report, _, _, counts = whole
    assert list(report["models"]) == ["base", "distilled", "grpo"]
    names = ["avg@8", "pass@1", "pass@2", "pass@4", "pass@8", "maj@4", "maj@8"]
    for model in report["models"].values():
        assert list(model) == [*names, "columns"]
        for name in names:
            assert model[name]["low"] <= model[name]["value"] <= model[name]["high"]
        assert model["columns"]["truncated"] > 0
        assert model["columns"]["problems"] == 40
    assert list(report["paired"]) == ["distilled-base", "grpo-distilled"]
    for name in names:
        gain = report["models"]["grpo"][name]["value"] - report["models"]["distilled"][name]["value"]
        assert report["paired"]["grpo-distilled"][name]["value"] == pytest.approx(gain, abs=2e-6)
    assert report["paired"]["grpo-distilled"]["pass@1"]["low"] > 0
    assert counts["pass@1 grpo"] == report["models"]["grpo"]["pass@1"]["value"]


def test_json_tells_of_every_stage_and_curve(whole):
    inputs, report, *_ = whole
    order = ["problems", "base", "curate", "distill", "grpo", "evaluate-base", "evaluate-distilled", "evaluate-grpo"]
    assert list(report["stages"]) == list(report["receipts"]) == order
    assert report["stages"]["distill"]["wall_s"] == 71.0
    assert report["stages"]["distill"]["attempt"] == 2
    assert report["receipts"]["curate"]["digest"] == inputs["dataset"].digest
    assert set(report["training"]["grpo"]) >= {"reward", "completions/mean_length", "entropy"}
    assert set(report["training"]["distilled"]) == {"loss"}
    assert len(report["training"]["grpo"]["entropy"]) == 119, "a null is not a point"
    assert "kl" not in report["training"]["grpo"], "0 throughout: there was no reference"
    assert report["funnel"]["steps"][0]["dropped"] == {"wrong": 400, "unparseable_answer": 50}


def test_page_is_well_formed_and_self_contained(whole):
    *_, page, _, _ = whole
    check_page(page)
    assert not re.search(r"https?://", page)
    assert page.count('class="transcript"') == 3
    for section in ("scores", "training", "data", "answers", "cost", "receipts"):
        assert f'id="{section}"' in page


def test_markdown_has_the_figures(whole):
    _, report, _, text, _ = whole
    value = report["models"]["grpo"]["pass@1"]["value"]
    row = next(line for line in text.splitlines() if line.startswith("| pass@1"))
    assert f"{100 * value:.1f} %" in row
    assert "grpo minus distilled" in text


def test_equal_inputs_give_equal_bytes(whole, tmp_path):
    inputs, report, page, text, _ = whole
    assert run_report(inputs, tmp_path)[:3] == (report, page, text)


def test_hostile_text_is_only_text(tmp_path):
    inputs = make_inputs(tmp_path, count=6, response=HOSTILE, hostile=HOSTILE)
    _, page, text, _ = run_report(inputs, tmp_path / "report", title=HOSTILE)
    check_page(page)
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page + text


def some(inputs, *names):
    return {name: artifact for name, artifact in inputs.items() if name in names}


def test_one_model_and_nothing_else(whole, tmp_path):
    report, page, text, _ = run_report(some(whole[0], "scores.base"), tmp_path)
    check_page(page)
    assert report["paired"] == {}
    assert report["funnel"] is None
    assert "no other model" in text


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_all_wrong_and_all_right(tmp_path, chance):
    asked = problems(6)
    inputs = {
        f"scores.{name}": evaluation(tmp_path / name, asked, lambda _: chance, response="\\boxed{1}")
        for name in ("base", "distilled")
    }
    report, page, _, _ = run_report(inputs, tmp_path / "report")
    check_page(page)
    assert "not measurably different" in report["findings"][0]


def test_one_sample_a_problem(tmp_path):
    one = evaluation(tmp_path / "base", problems(6), lambda _: 0.5, sampling=SAMPLING | {"samples": 1})
    report, page, _, _ = run_report({"scores.base": one, "scores.same": one}, tmp_path / "report")
    check_page(page)
    assert list(report["models"]["base"]) == ["avg@1", "pass@1", "columns"]


def test_a_model_without_metrics_has_no_curves(whole, tmp_path):
    inputs = some(whole[0], "scores.base", "training.grpo")
    inputs["training.base"] = checkpoint(tmp_path / "bought", "base_model", None)
    report, page, _, _ = run_report(inputs, tmp_path / "report")
    check_page(page)
    assert list(report["training"]) == ["grpo"]


def test_unlike_evaluations_make_no_report(tmp_path):
    asked = problems(6)
    inputs = {
        "scores.base": evaluation(tmp_path / "base", asked, lambda _: 0.5),
        "scores.grpo": evaluation(tmp_path / "grpo", asked, lambda _: 0.5, sampling=SAMPLING | {"temperature": 0.6}),
    }
    with pytest.raises(RequestError, match=r"sampling.temperature is 1.0 for base but 0.6 for grpo"):
        run_report(inputs, tmp_path / "report")


def told(first, most):
    pair = {
        name: Interval(value=v, low=v - w, high=v + w) for name, (v, w) in {"pass@1": first, "pass@16": most}.items()
    }
    found = finding(Pair("distilled", "grpo", pair), 16)
    return f"{found.headline} {found.detail}"


@pytest.mark.parametrize(
    ("first", "most", "words"),
    [
        ((0.292, 0.02), (-0.005, 0.02), ["gains 29.2 points", "[+27.2, +31.2]", "hardly moves", "sharpens"]),
        ((0.292, 0.02), (0.30, 0.02), ["gains 29.2 points", "rises too", "did not solve"]),
        ((0.292, 0.02), (-0.20, 0.02), ["gains", "falls", "fewer problems"]),
        ((0.10, 0.02), (0.08, 0.20), ["gains", "includes 0", "sharpens"]),
        ((0.01, 0.03), (0.30, 0.02), ["not measurably different", "[−2.0, +4.0] includes 0"]),
        ((-0.10, 0.02), (0.0, 0.02), ["loses 10.0 points"]),
    ],
)
def test_verdicts(first, most, words):
    for word in words:
        assert word in told(first, most)


def test_thinking_is_told_from_the_answer():
    assert split_thinking("<think>a</think>\nb") == ("<think>a</think>", "\nb")
    assert split_thinking("a</think>b") == ("a</think>", "b"), "some templates open the thought in the prompt"
    assert split_thinking("<think>never ends") == ("<think>never ends", "")
    assert split_thinking("just b") == ("", "just b")


def test_long_texts_keep_both_ends():
    text = shortened("a" * 5000 + "b" * 5000, most=300)
    assert text.startswith("a" * 200)
    assert text.endswith("b" * 100)
    assert "9700 characters left out" in text


def test_smoothing_keeps_lines_and_short_curves():
    line = [(10.0 * step, 3.0 - 0.02 * step) for step in range(100)]
    assert [value for _, value in smoothed(line)] == pytest.approx([value for _, value in line])
    assert smoothed(line[:10]) == line[:10]
    noisy = [(step, value + (-1) ** index) for index, (step, value) in enumerate(line)]
    assert max(abs(value - true) for (_, value), (_, true) in zip(smoothed(noisy), line, strict=True)) < 0.5


def test_long_curves_are_thinned_to_means():
    points = thinned([(float(step), float(step % 2)) for step in range(10_000)])
    assert len(points) <= 400
    assert {value for _, value in points} <= {0.48, 0.5, 0.52}


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [0.1, 0.9], [-3.0, 250.0], [1e-9, 2e-9], [1e7, 3e7]])
def test_axes_hold_their_values(values):
    axis = linear_axis(values)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 9
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)


def test_numbers_as_people_read_them():
    assert [duration(s) for s in (0.04, 59.9, 59.96, 245, 11520)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "3 h 12 min",
    ]
    assert [size(b) for b in (900, 1536, 512 * 2**20)] == ["900 B", "1.5 KiB", "512 MiB"]
    assert [points(d) for d in (0.292, -0.004, -0.0001)] == ["+29.2", "−0.4", "0.0"]
