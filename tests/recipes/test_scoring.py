"""Scores of graded rows: their numbers, and what is refused."""

import pytest

from reasonforge.errors import RequestError
from reasonforge.files import write_json
from recipes.evaluation.scoring import compare, metric_names, read_scores, score

SAMPLING = {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 80}


def problem(number):
    return {"id": f"p{number}", "prompt": f"{number} + 1?", "answer": str(number + 1)}


def row(number, sample, verdict="correct", extracted="right", finish="stop", tokens=10):
    return {
        "id": f"p{number}/{sample}",
        "problem_id": f"p{number}",
        "sample": sample,
        "finish_reason": finish,
        "completion_tokens": tokens,
        "verdict": verdict,
        "extracted": extracted,
    }


def rows(*verdicts):
    """Rows of problems given as strings: c correct, w wrong, n no answer, t timeout, g unparseable gold."""
    names = {"c": "correct", "w": "wrong", "n": "unparseable_answer", "t": "timeout", "g": "unparseable_gold"}
    return [
        row(number, sample, names[letter], None if letter == "n" else f"the {letter}")
        for number, letters in enumerate(verdicts)
        for sample, letter in enumerate(letters)
    ]


def scored(found, count=None, sampling=SAMPLING, grader=None, problems=None):
    count = count or len({r["problem_id"] for r in found})
    return score(
        found,
        problems or [problem(number) for number in range(count)],
        where="samples.jsonl",
        sampling=sampling,
        grader=grader or {"type": "exact"},
        equivalent=lambda pairs: [False] * len(pairs),
        resamples=500,
    )


def test_metrics_of_four_samples():
    scores = scored(rows("cccc", "cwww", "wwww", "ccww"))
    assert list(scores.metrics) == ["avg@4", "pass@1", "pass@2", "pass@4", "maj@4"] == metric_names(4)
    assert scores.metrics["avg@4"] == scores.metrics["pass@1"]
    assert scores.metrics["pass@1"].value == 7 / 16
    assert scores.metrics["pass@2"].value == pytest.approx((1 + 3 / 6 + 0 + 5 / 6) / 4, abs=1e-6)
    assert scores.metrics["pass@4"].value == 3 / 4
    assert scores.metrics["maj@4"].value == (1 + 0 + 0 + 1 / 2) / 4
    assert scores.ties == {"maj@4": 1 / 4}
    for interval in scores.metrics.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_unparseable_gold_is_in_no_mean_and_timeouts_are_not_correct():
    scores = scored(rows("cccc", "gggg", "cctt"))
    assert (scores.problems, scores.scored, scores.unparseable_gold) == (3, 2, 1)
    assert scores.metrics["pass@1"].value == 3 / 4
    assert scores.columns.timeout == 2 / 8
    assert [entry.scored for entry in scores.per_problem] == [True, False, True]


def test_columns():
    found = rows("cccn", "nnnw")
    found[3].update(finish_reason="length", completion_tokens=80)
    found[4].update(finish_reason="length", completion_tokens=80)
    columns = scored(found).columns
    assert (columns.truncated, columns.no_answer, columns.no_answer_majority) == (2 / 8, 4 / 8, 1 / 2)
    assert (columns.tokens_mean, columns.tokens_p50, columns.tokens_p90) == ((6 * 10 + 160) / 8, 10, 80)


def test_tokens_that_nobody_counted_are_null():
    found = [r | {"completion_tokens": None} for r in rows("cccc")]
    assert scored(found).columns.tokens_mean is None


def test_equivalent_wrong_answers_share_a_vote():
    found = rows("cwww")
    for entry, text in zip(found, ["7", "1/2", "0.5", "9"], strict=True):
        entry.update(extracted=text)
    apart, joined = (
        score(
            found,
            [problem(0)],
            where="samples.jsonl",
            sampling=SAMPLING,
            grader={"type": "math_verify"},
            equivalent=lambda asked, same=same: [pair in same for _, *pair in asked],
            resamples=100,
        )
        for same in ([], [["0.5", "1/2"]])
    )
    assert (apart.metrics["maj@4"].value, apart.ties["maj@4"]) == (0.25, 1.0)
    assert (joined.metrics["maj@4"].value, joined.ties["maj@4"]) == (0.0, 0.0)


def test_row_order_does_not_matter():
    found = rows("cwwc", "ccwn", "wwww")
    assert scored(found[::-1], 3) == scored(found, 3)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (rows("cccc", "ccc"), "'p1' has 3 samples; each problem needs exactly 4"),
        (rows("cccc", "ccccc"), "'p1' has 5 samples"),
        (rows("cccc"), "'p1' has 0 samples"),
        ([*rows("cccc", "ccc"), row(1, 2)], "not numbered 0 to 3"),
        (rows("cccc", "cccc", "cccc"), "not among the problems"),
        (rows("gggg", "gggg"), "no problem has a gold answer"),
    ],
)
def test_wrong_numbers_of_samples_are_refused(found, message):
    with pytest.raises(RequestError, match=message) as caught:
        scored(found, 2)
    assert "\n" not in str(caught.value)


def test_scores_survive_their_file(tmp_path):
    scores = scored(rows("cwwc", "ccwn"))
    write_json(tmp_path / "scores.json", scores.model_dump(mode="json"))
    assert read_scores(tmp_path / "scores.json") == scores


def test_a_damaged_file_is_named_with_its_key(tmp_path):
    body = scored(rows("cwwc")).model_dump(mode="json")
    body["metrics"]["pass@1"]["low"] = "low"
    write_json(tmp_path / "scores.json", body)
    with pytest.raises(RequestError, match=r"scores.json: metrics.pass@1.low"):
        read_scores(tmp_path / "scores.json")
    with pytest.raises(RequestError, match="no such file"):
        read_scores(tmp_path / "none.json")


def test_paired_differences():
    before, after = scored(rows("cwww", "wwww", "cccc")), scored(rows("cccw", "ccww", "cccc"))
    found = compare(("base", before), ("grpo", after), resamples=500)
    assert list(found) == metric_names(4)
    assert found["pass@1"].value == pytest.approx(4 / 12, abs=1e-6)
    assert found["pass@1"].low == 0.0, "the third problem drawn three times gains nothing"
    assert compare(("base", before), ("base", before))["pass@4"].model_dump() == {"value": 0, "low": 0, "high": 0}


def test_a_problem_scored_for_one_only_is_left_out_of_the_pairs():
    before, after = scored(rows("cwww", "gggg")), scored(rows("cccc", "cccc"))
    assert compare(("a", before), ("b", after), resamples=100)["pass@1"].value == 0.75


def test_unlike_evaluations_are_not_compared():
    found = rows("cwww", "wwww")
    base = scored(found)
    eight = scored(rows("cwwwcwww", "wwwwwwww"), sampling=SAMPLING | {"samples": 8})
    others = {
        "4 samples a problem for base but 8 for other": eight,
        "sampling.temperature is 1.0 for base but 0.6 for other": scored(
            found, sampling=SAMPLING | {"temperature": 0.6}
        ),
        "grader.type is 'exact' for base but 'math_verify' for other": scored(found, grader={"type": "math_verify"}),
        "1 problems are not in both: 'p2' is in other but not in base": scored(rows("cwww", "wwww", "cccc")),
        "prompt_sha256": scored(found, problems=[problem(0), problem(1) | {"prompt": "What is 1 + 1?"}]),
    }
    for message, other in others.items():
        with pytest.raises(RequestError, match=message):
            compare(("base", base), ("other", other))
