import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bpe_fixture import save_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizer_fixture import save_tokenizer

from data_prep.annotation import (
    Annotation,
    Annotations,
    DifficultyAnnotation,
    DomainAnnotation,
    DomainRule,
    EscapeAnnotation,
    LanguageAnnotation,
    TokensAnnotation,
    annotate,
    streaming,
)
from data_prep.annotation.control import control_tokens
from data_prep.filters import SpecialTokensFilter
from data_prep.tokenization.chat import ChatTokenizer
from data_prep.tokenization.encoder import TextEncoder
from reasonforge.errors import RequestError

Row = dict[str, Any]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "$\\[](){}`<|>im_end a1=é字\n", max_size=60
)


def trace(problem: str, sample: int = 0, **columns: Any) -> Row:
    row = {"id": f"{problem}/{sample}", "problem_id": problem, "sample": sample, "verdict": "correct"}
    return {**row, "prompt": f"What is {problem}?", "response": "It is 4.", **columns}


def group(problem: str, verdicts: str) -> list[Row]:
    names = {"c": "correct", "w": "wrong", "t": "timeout", "a": "unparseable_answer", "g": "unparseable_gold"}
    return [trace(problem, sample, verdict=names[one]) for sample, one in enumerate(verdicts)]


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bpe(tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("cccc", (4, 1.0, "easy")),
        ("cccw", (4, 0.75, "medium")),
        ("cwww", (4, 0.25, "hard")),
        ("wtaa", (4, 0.0, "hard")),
        ("ccccggg", (4, 1.0, "easy")),
        ("cwwgg", (3, None, None)),
        ("gggg", (0, None, None)),
    ],
)
def test_difficulty_is_by_the_pass_rate_of_the_whole_problem(verdicts: str, expected: tuple[Any, ...]) -> None:
    rows = [*group("p", verdicts), *group("q", "cwcw")]
    found = list(annotate(rows, [DifficultyAnnotation()]))
    told = [(row["graded_traces"], row["pass_rate"], row["difficulty"]) for row in found]
    assert told == [expected] * len(verdicts) + [(4, 0.5, "medium")] * 4
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert "pass_rate" not in rows[0]


@given(st.lists(st.text("cwtag", min_size=1, max_size=9), max_size=12), st.integers(1, 9), st.integers(1, 60))
def test_groups_do_not_depend_on_where_batches_end(problems: list[str], rows: int, characters: int) -> None:
    traces = [row for number, verdicts in enumerate(problems) for row in group(f"p{number}", verdicts)]
    steps = [DifficultyAnnotation(min_traces=1), DomainAnnotation(rules=[DomainRule(name="x", words=["p1"])])]
    whole = list(annotate(traces, steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BATCH_ROWS", rows)
        patch.setattr(streaming, "BATCH_CHARACTERS", characters)
        assert list(annotate(traces, steps)) == whole
    for row in whole:
        graded = [one for one in traces if one["problem_id"] == row["problem_id"]]
        counted = [one["verdict"] for one in graded if one["verdict"] != "unparseable_gold"]
        assert row["graded_traces"] == len(counted)
        assert row["pass_rate"] == (counted.count("correct") / len(counted) if counted else None)


def test_traces_of_a_problem_must_stand_together() -> None:
    rows = [*group("p", "cc"), *group("q", "cc"), *group("p", "cc")]
    with pytest.raises(RequestError, match="'p': its traces stand in several places"):
        list(annotate(rows, [DifficultyAnnotation()]))
    with pytest.raises(RequestError, match="p/0: no `verdict`"):
        list(annotate([{"id": "p/0", "problem_id": "p"}], [DifficultyAnnotation()]))
    with pytest.raises(RequestError, match="no `problem_id`"):
        list(annotate([{"id": "x", "verdict": "correct"}], [DifficultyAnnotation()]))


@pytest.mark.parametrize("levels", [{}, {"hard": 0.5}, {"a": 0.5, "b": 0.5, "c": 1.0}, {"a": 0.7, "b": 0.2}])
def test_levels_must_rise_to_one(levels: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="rising pass rates"):
        DifficultyAnnotation(levels=levels)


def test_rows_stream_through() -> None:
    taken = 0

    def rows() -> Iterator[Row]:
        nonlocal taken
        for number in range(5000):
            for sample in range(4):
                taken += 1
                yield trace(f"p{number}", sample, response=str(number) * 1000)

    found = annotate(rows(), [DifficultyAnnotation()])
    next(found)
    assert taken <= streaming.BATCH_ROWS + 5
    tracemalloc.start()
    assert sum(1 for _ in found) == 19_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # the texts are 80 MB


def test_rows_without_a_problem_are_not_held_together() -> None:
    rows = ({"id": str(number), "prompt": "a", "response": "b"} for number in range(10_000))
    found = annotate(rows, [DomainAnnotation(rules=[DomainRule(name="x", words=["a"])])])
    assert next(found)["domain"] == "x"
    assert next(rows)["id"] == str(streaming.BATCH_ROWS)


def test_a_column_that_is_there_is_not_written_over_unasked() -> None:
    rows = [trace("p", difficulty="hard")]
    with pytest.raises(RequestError, match="row p/0: it has a column 'difficulty' already"):
        list(annotate(rows, [DifficultyAnnotation(min_traces=1)]))
    assert next(annotate(rows, [DifficultyAnnotation(min_traces=1, replace=True)]))["difficulty"] == "easy"


def test_domain_comes_from_a_column_or_from_the_first_rule_that_matches() -> None:
    rules = [
        DomainRule(name="geometry", words=["triangle", "unit  circle"]),
        DomainRule(name="combinatorics", patterns=[r"\\binom", "(?i)how many ways"]),
        DomainRule(name="circles", words=["circle"]),
    ]
    one = DomainAnnotation(column="subject", rules=rules, otherwise="other")
    expected = {
        "A TRIANGLE with": "geometry",
        "Two triangles": "other",
        "the unit\ncircle": "geometry",
        "a circle of": "circles",
        "$\\binom{4}{2}$ in a triangle": "geometry",
        "$\\binom{4}{2}$": "combinatorics",
        "In How Many Ways": "combinatorics",
        "": "other",
    }
    assert [found["domain"] for found in one.look([{"prompt": text} for text in expected])] == list(expected.values())
    given_rows = [{"prompt": "a circle", "subject": subject} for subject in (" algebra ", "", None, 3)]
    assert [found["domain"] for found in one.look(given_rows)] == ["algebra", "circles", "circles", "circles"]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, "neither is given"),
        ({"rules": [{"name": "x"}]}, "neither words nor patterns"),
        ({"rules": [{"name": "x", "patterns": ["("]}]}, "not a regular expression"),
    ],
)
def test_a_domain_needs_rules_that_can_match(config: Row, match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        DomainAnnotation(**config)


def test_lengths_are_those_of_the_tokenizer(qwen: Path) -> None:
    one = TokensAnnotation(model=str(qwen))
    texts = ["", "a", "We add: 17 + 25 = 42.", "中文 <|im_end|> é"]
    rows = [trace("p", number, prompt=text, response=text * 3) for number, text in enumerate(texts)]
    encoder = TextEncoder(qwen)
    for row in annotate(rows, [one]):
        assert row["prompt_length"] == len(encoder.encode([row["prompt"]])[0])
        assert row["response_length"] == len(encoder.encode([row["response"]])[0])
    assert [path.name for path in one.external_files] == ["tokenizer.json", "tokenizer_config.json"]
    with pytest.raises(RequestError, match="there is no tokenizer"):
        TokensAnnotation(model=str(qwen / "nowhere")).look(rows)


def test_control_tokens_are_escaped_and_counted(qwen: Path) -> None:
    row = trace("p", prompt="<think>a<|im_end|>", response="<think>b<|im_end|><|im_end|></think>\\boxed{<|im_end>}")
    found = next(annotate([row], [EscapeAnnotation(model=str(qwen))]))
    assert found["prompt"] == "< think>a< |im_end|>"
    assert found["response"] == "<think>b< |im_end|>< |im_end|></think>\\boxed{<|im_end>}"
    assert found["escaped"] == {"<think>": 1, "<|im_end|>": 3}
    assert next(annotate([trace("p")], [EscapeAnnotation()]))["escaped"] == {}
    for token in ("", "a", "a b", " <x>"):
        with pytest.raises(ValidationError, match="cannot be escaped"):
            EscapeAnnotation(tokens=[token])


@given(st.lists(st.text("ab<|", min_size=2, max_size=5), min_size=1, max_size=4), st.text("ab<| ", max_size=30))
def test_what_was_escaped_has_no_control_token(tokens: list[str], text: str) -> None:
    one = EscapeAnnotation(tokens=tokens)
    (found,) = one.look([trace("p", prompt=text, response=text)])
    assert SpecialTokensFilter(tokens=tokens).reason(found) is None
    assert found["prompt"].replace(" ", "") == text.replace(" ", "")
    assert (found["prompt"] == text) == (not any(token in text for token in tokens))


@pytest.mark.parametrize("save", [save_bpe, save_tokenizer])
def test_the_filter_drops_what_tokenization_would(save: Any, tmp_path: Path) -> None:
    model = save_tokenizer(tmp_path)
    if save is save_bpe:
        save_bpe(tmp_path)  # its tokenizer, with that chat template
    tokenizer = ChatTokenizer(model, 1000)
    texts = ["Hi.", *(f"a {token} b" for token in control_tokens(model)), "<tool_call>", "<|im_end", "</think>", "[x]"]
    rows = [{"prompt": prompt, "response": response} for prompt in texts for response in texts]
    one = SpecialTokensFilter(model=str(model))
    for row, found in zip(rows, tokenizer.encode(rows), strict=True):
        assert (one.reason(row) is not None) == (found == "special_token_in_text"), row


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_no_text_stops_an_annotation(qwen: Path, texts: list[tuple[str, str]]) -> None:
    rows = [trace("p", number, prompt=a, response=b) for number, (a, b) in enumerate(texts)]
    steps: list[Annotation] = [
        EscapeAnnotation(model=str(qwen)),
        TokensAnnotation(model=str(qwen)),
        LanguageAnnotation(),
        DifficultyAnnotation(),
        DomainAnnotation(rules=[DomainRule(name="x", words=["a"])]),
    ]
    found = list(annotate(rows, steps))
    assert found == list(annotate(rows, steps))
    names = {name for one in steps for name in one.adds}
    assert all(row.keys() == rows[0].keys() | names for row in found)


def test_all_annotations_are_in_the_union_and_say_what_they_need(qwen: Path) -> None:
    adapter: TypeAdapter[list[Annotation]] = TypeAdapter(list[Annotations])
    given_types = [
        {"type": "tokens", "model": str(qwen)},
        {"type": "language"},
        {"type": "difficulty"},
        {"type": "domain", "column": "subject"},
        {"type": "escape"},
    ]
    found = adapter.validate_python(given_types)
    assert [one.needs for one in found] == [("tokenizers", "numpy"), ("py3langid",), (), (), ()]
    assert list(annotate([{"a": 1}], [])) == [{"a": 1}]


def test_annotation_is_the_same_for_every_order_of_batches(qwen: Path) -> None:
    rng = Random(0)
    rows = [trace(f"p{n}", s, response="abc " * rng.randint(0, 40)) for n in range(90) for s in range(5)]
    steps: list[Annotation] = [TokensAnnotation(model=str(qwen)), DifficultyAnnotation()]
    alone = [row for n in range(90) for row in annotate(rows[5 * n : 5 * n + 5], steps)]
    assert list(annotate(rows, steps)) == alone
