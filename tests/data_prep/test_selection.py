import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_prep.commands.select import select
from data_prep.selection import BalancedSelection, DiverseSelection, Selection, Selections, ShortestCorrectSelection
from data_prep.selection.diverse import farthest
from data_prep.selection.shares import fill
from reasonforge.errors import RequestError
from reasonforge.files import read_json, read_jsonl
from reasonforge.progress import Progress

Rows = list[dict[str, Any]]


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., list[str | None]]:
    def run(selection: Selection, rows: Rows, seed: int = 0) -> list[str | None]:
        path, scratch = tmp_path / "rows.jsonl", tmp_path / "scratch"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scratch.mkdir(exist_ok=True)
        found = list(selection.choose(path, scratch, seed=seed, progress=Progress))
        assert len(found) == len(rows)
        run.figures = selection.figures(scratch)  # type: ignore[attr-defined]
        return found

    return run


def annotated(**cells: int) -> Rows:
    """So many rows of each cell `difficulty_domain`, mixed."""
    rows = []
    for cell, count in cells.items():
        difficulty, domain = cell.split("_")
        rows += [
            {"id": f"{cell}-{number}", "difficulty": difficulty, "domain": domain, "completion_tokens": 100 + number}
            for number in range(count)
        ]
    Random(0).shuffle(rows)
    return rows


def kept_ids(rows: Rows, reasons: list[str | None]) -> list[str]:
    return [row["id"] for row, reason in zip(rows, reasons, strict=True) if reason is None]


def test_what_a_cell_lacks_goes_to_the_others(choose: Callable[..., list[str | None]]) -> None:
    rows = annotated(easy_algebra=50, hard_algebra=8, easy_code=30, hard_code=2)
    reasons = choose(BalancedSelection(rows=50, lengths=[1024]), rows)
    kept = Counter(name.split("-")[0] for name in kept_ids(rows, reasons))
    assert kept == {"easy_algebra": 20, "easy_code": 20, "hard_algebra": 8, "hard_code": 2}
    assert set(reasons) == {None, "over its share of easy/algebra/0-1024", "over its share of easy/code/0-1024"}
    assert choose.figures["cells"]["easy/algebra/0-1024"] == {"in": 50, "out": 20}  # type: ignore[attr-defined]


def test_the_choice_depends_on_ids_and_seed_only(choose: Callable[..., list[str | None]]) -> None:
    rows = annotated(easy_algebra=50, hard_algebra=8, easy_code=31)
    one = BalancedSelection(rows=43)
    first = kept_ids(rows, choose(one, rows))
    assert len(first) == 43
    again = rows[::-1]
    assert sorted(kept_ids(again, choose(one, again))) == sorted(first)
    other = kept_ids(rows, choose(one, rows, seed=1))
    assert len(other) == 43
    assert sorted(other) != sorted(first)
    fewer = kept_ids(rows, choose(BalancedSelection(rows=20), rows))
    assert set(fewer) < set(first)


def test_a_budget_of_tokens(choose: Callable[..., list[str | None]]) -> None:
    rows = annotated(easy_algebra=40, hard_algebra=40)
    for row in rows:
        row["completion_tokens"] = 1000 if row["difficulty"] == "hard" else 100
    reasons = choose(BalancedSelection(tokens=6500, lengths=[]), rows)
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    assert sum(row["completion_tokens"] for row in kept) <= 6500
    assert Counter(row["difficulty"] for row in kept) == {"hard": 3, "easy": 35}


def test_bins_of_length_and_unknown_values(choose: Callable[..., list[str | None]]) -> None:
    rows: Rows = [
        {"id": str(number), "domain": None, "completion_tokens": count, "response": "a b c"}
        for number, count in enumerate([None, 0, 9, 10, 19, 20, 500])
    ]
    choose(BalancedSelection(rows=7, by=["domain"], lengths=[10, 20]), rows)
    cells = choose.figures["cells"]  # type: ignore[attr-defined]
    expected = {"unknown/unknown": 1, "unknown/0-10": 2, "unknown/10-20": 2, "unknown/20 and more": 2}
    assert {name: found["in"] for name, found in cells.items()} == expected
    words = BalancedSelection(rows=7, by=[], lengths=[3, 4], unit="words")
    assert words.columns == ("response",)
    choose(words, rows)
    assert list(choose.figures["cells"]) == ["3-4"]  # type: ignore[attr-defined]


def test_what_balanced_refuses(choose: Callable[..., list[str | None]]) -> None:
    rows = annotated(easy_code=2)
    with pytest.raises(RequestError, match=r"row easy_code-\d: no column 'dificulty'; .* did you mean 'difficulty'\?"):
        choose(BalancedSelection(rows=1, by=["dificulty"]), rows)
    with pytest.raises(RequestError, match=r"no column 'tokens'; name a column of token counts, or set `unit`"):
        choose(BalancedSelection(rows=1, count_column="tokens"), rows)
    rows[0]["completion_tokens"] = None
    with pytest.raises(RequestError, match="is null, so its tokens cannot be counted; give `rows`"):
        choose(BalancedSelection(tokens=1), rows)
    for bad in [{}, {"rows": 1, "tokens": 1}, {"rows": 1, "lengths": [2, 2]}, {"rows": 1, "lengths": [], "by": []}]:
        with pytest.raises(ValidationError):
            BalancedSelection(**bad)
    assert choose(BalancedSelection(rows=1), []) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=60), st.integers(1, 120), st.randoms())
def test_shares_are_those_of_water_filling(rows: list[tuple[int, int]], budget: int, random: Random) -> None:
    cells = np.array([cell for cell, _ in rows], np.int32)
    lots = np.array([random.randrange(1 << 40) for _ in rows], np.int64)
    for weights in (np.ones(len(rows), np.int64), np.array([weight for _, weight in rows], np.int64)):
        kept = fill(cells, lots, weights, budget)
        total, heaviest = int(weights[kept].sum()), int(weights.max(initial=0))
        assert total <= budget
        assert kept.all() or total > budget - heaviest
        shares = {cell: int(weights[kept & (cells == cell)].sum()) for cell in set(cells.tolist())}
        for cell in shares:
            mine = cells == cell
            dropped = mine & ~kept
            # Among the rows of a cell the lot decides.
            assert lots[mine & kept].max(initial=-1) <= lots[dropped].min(initial=1 << 41)
            # A cell that had to give up rows has no less than any other, but for one row.
            assert not dropped.any() or shares[cell] >= max(shares.values()) - heaviest


def traces(*lengths: tuple[str, str, int | None]) -> Rows:
    return [
        {"id": f"{problem}/{at}", "problem_id": problem, "verdict": verdict, "completion_tokens": count,
         "response": "x " * (count or 0)}
        for at, (problem, verdict, count) in enumerate(lengths)
    ]  # fmt: skip


def test_the_shortest_correct(choose: Callable[..., list[str | None]]) -> None:
    rows = traces(
        ("a", "correct", 9), ("a", "correct", 5), ("a", "wrong", 1), ("b", "wrong", 2), ("a", "correct", 7),
        ("c", "correct", 4), ("a", "timeout", 1),
    )  # fmt: skip
    long = "not among the 1 shortest correct of its problem"
    wrong = "not correct"
    assert choose(ShortestCorrectSelection(), rows) == [long, None, wrong, wrong, long, None, wrong]
    two = choose(ShortestCorrectSelection(k=2, unit="words"), rows)
    assert two == [long.replace("1", "2"), None, wrong, wrong, None, None, wrong]
    assert choose(ShortestCorrectSelection(), []) == []
    assert choose(ShortestCorrectSelection(), rows[3:4]) == [wrong]
    with pytest.raises(RequestError, match=r"row b/0: 'completion_tokens' is null.*; set `unit` to words"):
        choose(ShortestCorrectSelection(), traces(("b", "correct", None)))


def test_of_equally_short_ones_the_lot_decides_wherever_they_stand(choose: Callable[..., list[str | None]]) -> None:
    rows = traces(*[(f"p{number % 9}", "correct", 5) for number in range(90)])
    chosen = kept_ids(rows, choose(ShortestCorrectSelection(), rows))
    assert len(chosen) == 9
    assert sorted(kept_ids(rows[::-1], choose(ShortestCorrectSelection(), rows[::-1]))) == sorted(chosen)
    assert chosen != kept_ids(rows, choose(ShortestCorrectSelection(), rows, seed=3))


def solution(theme: str, seed: int, changes: int = 0) -> str:
    words = [f"{theme}{Random(seed).randrange(10**6)}-{place}" for place in range(60)]
    for place in range(changes):
        words[7 * place] = f"other{place}"
    return " ".join(words)


def test_diverse_takes_one_of_each_kind(choose: Callable[..., list[str | None]]) -> None:
    kinds = {"sum": 6, "graph": 3, "induction": 1}
    rows = [
        {"id": f"p/{kind}-{number}", "problem_id": "p", "response": solution(kind, 0, changes=number % 3)}
        for kind, count in kinds.items()
        for number in range(count)
    ]
    rows += [{"id": f"q/{number}", "problem_id": "q", "response": "all the same words here"} for number in range(4)]
    rows += [{"id": "r/0", "problem_id": "r", "response": ""}]
    Random(1).shuffle(rows)
    kept = kept_ids(rows, choose(DiverseSelection(k=3), rows))
    assert sorted(name.split("-")[0] for name in kept if name[0] == "p") == ["p/graph", "p/induction", "p/sum"]
    assert sum(name[0] == "q" for name in kept) == 3
    assert "r/0" in kept
    assert sorted(kept_ids(rows[::-1], choose(DiverseSelection(k=3), rows[::-1]))) == sorted(kept)
    assert "not among the 3 most diverse of its problem" in choose(DiverseSelection(k=3), rows)
    alone = kept_ids(rows, choose(DiverseSelection(k=1), rows))
    assert next(name for name in alone if name[0] == "p").startswith("p/sum")
    assert choose(DiverseSelection(), []) == []


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 9), st.integers(2, 4), st.integers(0, 10**6))
def test_farthest_is_within_a_factor_of_two_of_the_best(count: int, k: int, seed: int) -> None:
    from itertools import combinations

    signatures = np.random.default_rng(seed).integers(0, 3, (count, 128)).astype(np.uint8)
    unlike = (signatures[:, None] != signatures[None]).sum(axis=2)

    def least(chosen: Any) -> int:
        return int(min(unlike[a, b] for a, b in combinations(chosen, 2)))

    found = farthest(signatures, k)
    assert len(set(found)) == len(found) == min(k, count)
    if k < count:
        assert 2 * least(found) >= max(least(chosen) for chosen in combinations(range(count), k))
        assert k > 2 or least(found) == unlike.max()


def test_the_command(tmp_path: Path) -> None:
    rows = [
        {**row, "problem_id": row["difficulty"], "verdict": "correct", "response": solution(row["id"], 0)}
        for row in annotated(easy_code=30, hard_code=10)
    ]
    for name, some in (("one", rows[:25]), ("two", rows[25:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config, into = tmp_path / "select.yaml", tmp_path / "taken"
    config.write_text("select:\n- {type: balanced, rows: 30}\n- {type: shortest_correct, k: 12}\n")
    sources = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    done = CliRunner().invoke(select, [*sources, "--into", str(into), "--config", str(config), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 22
    kept, dropped = (list(read_jsonl(into / f"{name}.jsonl")) for name in ("dataset", "dropped"))
    assert Counter(row["difficulty"] for row in kept) == {"easy": 12, "hard": 10}
    assert Counter(row["dropped_by"] for row in dropped) == {"select-balanced": 10, "select-shortest_correct": 8}
    figures = read_json(into / "funnel.json")["selections"]
    assert figures["select-balanced"]["cells"] == {"easy/code/0-1024": {"in": 30, "out": 20},
                                            "hard/code/0-1024": {"in": 10, "out": 10}}  # fmt: skip
    again = CliRunner().invoke(select, [*sources, "--into", str(tmp_path / "x"), "--set", "select=[]"])
    assert isinstance(again.exception, RequestError)


def test_the_union_knows_all_selections() -> None:
    given_options: list[dict[str, Any]] = [
        {"type": "balanced", "rows": 9},
        {"type": "shortest_correct"},
        {"type": "diverse"},
        {"type": "g_vendi", "model_path": "m"},
        {"type": "prismatic", "model_path": "m"},
    ]
    found = TypeAdapter(list[Selections]).validate_python(given_options)
    assert [one.type for one in found] == [one["type"] for one in given_options]
    assert all("numpy" in one.needs for one in found)
