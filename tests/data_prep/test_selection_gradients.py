import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from killing import run

from data_prep.selection import GVendiSelection, PrismaticSelection
from data_prep.selection.clusters import cluster
from data_prep.selection.gradients import GradientSelection, collect
from data_prep.selection.projection import BLOCK, project, signs
from data_prep.selection.vendi import spread, vendi_score
from reasonforge.errors import RequestError
from reasonforge.progress import Progress

Rows = list[dict[str, Any]]

OUTLIERS = {
    "Translate: cat": "<think>\n</think>\nle chat QXZ!!",
    "Prove it.": "<think>\nSuppose #$%^& not; contradiction by @@@@.\n</think>\nQED",
    "Code?": "<think>\n</think>\ndef f(x): return [y for y in x if y]",
    "日本": "<think>\n東京\n</think>\n日本の首都は東京です",
}


def planted(size: int = 32) -> Rows:
    """Three groups of like traces, and four outliers, mixed."""
    random = Random(0)
    rows: Rows = []
    for number in range(size):
        a, b, n = random.randint(10, 99), random.randint(10, 99), random.randint(3, 9)
        hello = " ".join(random.choices(["Hello", "there", "Assistant", "first", "sum"], k=8))
        told = "\n".join(map(str, range(1, n + 1)))
        for group, prompt, response in (
            ("sum", f"What is {a} + {b}?", f"<think>\nWe add the numbers: {a} + {b} = {a + b}.\n</think>\n{a + b}"),
            ("hello", "Say hello.", f"<think>\nHello there.\n</think>\n{hello}"),
            ("count", f"Count to {n}.", f"<think>\n{told}\n</think>\n\\boxed{{{n}}}"),
        ):
            rows.append({"id": f"{group}-{number}", "prompt": prompt, "response": response})
    rows += [{"id": f"outlier-{p}", "prompt": p, "response": response} for p, response in OUTLIERS.items()]
    random.shuffle(rows)
    return rows


def written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen(selection: GradientSelection, rows: Rows, root: Path, seed: int = 0) -> tuple[list[str], dict[str, Any]]:
    """The groups of the rows that are kept, and the figures."""
    root.mkdir(exist_ok=True)
    reasons = list(selection.choose(written(root / "rows.jsonl", rows), root / "work", seed=seed, progress=Progress))
    kept = [row["id"].split("-")[0] for row, reason in zip(rows, reasons, strict=True) if reason is None]
    figures = selection.figures(root / "work")
    assert figures["rows_out"] == len(kept)
    return kept, figures


def splitmix64(state: int) -> int:
    """As its authors publish it, in Python's integers."""
    mask = (1 << 64) - 1
    value = state & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_signs_are_the_bits_of_splitmix64() -> None:
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first output for seed 0
    start = 7 * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
    found = signs(5, 3, 128, seed=7)
    for row in range(3):
        for word in range(2):
            value = splitmix64(start + ((5 + row) * 2 + word + 1) * 0x9E3779B97F4A7C15)
            expected = [1.0 if value >> bit & 1 else -1.0 for bit in range(64)]
            assert found[row, 64 * word : 64 * word + 64].tolist() == expected
    many = signs(0, 4096, 256, seed=1)
    assert abs(float(many.mean())) < 4 / (4096 * 256) ** 0.5
    assert float((many.T @ many / 4096 - torch.eye(256)).abs().max()) < 6 / 4096**0.5
    assert not torch.equal(many, signs(0, 4096, 256, seed=2))


def test_blocks_give_what_the_dense_projection_gives() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 2 * BLOCK + 300)
    dense = vectors.double() @ signs(0, vectors.shape[1], 1024, seed=3).double() / 1024**0.5
    pieces = vectors.split([100, BLOCK + 7, vectors.shape[1] - BLOCK - 107], dim=1)
    assert torch.allclose(project(pieces, 1024, 3).double(), dense, atol=1e-4)


def test_inner_products_keep_within_what_johnson_and_lindenstrauss_promise() -> None:
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(64, 4000) + 2 * torch.randn(8, 4000).repeat(8, 1), dim=1)
    found = project([vectors], 1024, 0)
    errors = (found @ found.T - vectors @ vectors.T)[*torch.triu_indices(64, 64, offset=1)]
    assert 0.02 < float(errors.std()) < (2 / 1024) ** 0.5
    assert float(errors.abs().max()) < 5.5 * (2 / 1024) ** 0.5


def test_a_gradient_is_that_of_the_whole_model(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = planted(2)
    config = GVendiSelection(model_path=str(tiny_model), dimensions=256, batch=3)
    found = collect(written(tmp_path / "rows.jsonl", rows), config, tmp_path, seed=5, progress=Progress)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for row, vector in zip(rows, found.vectors, strict=True):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        mask = torch.as_tensor(encoded["assistant_masks"]).bool()
        labels = torch.where(mask, encoded["input_ids"], -100)
        model.zero_grad()
        model(input_ids=encoded["input_ids"], labels=labels).loss.backward()
        flat = torch.cat([one.grad.reshape(-1) for one in model.parameters()]).double()
        dense = flat @ signs(0, len(flat), 256, seed=5).double()
        assert np.allclose(vector, (dense / dense.norm()).numpy(), atol=2e-5)


def test_the_score() -> None:
    assert vendi_score(np.eye(7, 64, dtype=np.float32)) == pytest.approx(7)
    assert vendi_score(np.ones((5, 64), np.float32)) == pytest.approx(1)
    assert vendi_score(np.zeros((0, 64), np.float32)) == 0
    random = np.random.default_rng(0)
    some = random.normal(size=(40, 64)).astype(np.float32)
    score = vendi_score(some)
    assert vendi_score(np.concatenate([some, some, some])) == pytest.approx(score)
    assert vendi_score(3 * some) == pytest.approx(score)
    assert vendi_score(np.concatenate([some, np.zeros_like(some)])) == pytest.approx(score)
    for at in range(40):
        assert vendi_score(np.concatenate([some, some[at : at + 1].repeat(20, axis=0)])) < score
    gram = some / np.linalg.norm(some, axis=1, keepdims=True)
    values = np.linalg.eigvalsh((gram @ gram.T).astype(np.float64) / 40)
    values = values[values > 1e-12]
    assert score == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_the_cheap_choice_is_nearly_the_greedy_one() -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(12, 96))
    some = (centres[random.geometric(0.3, 150).clip(1, 12) - 1] + 0.5 * random.normal(size=(150, 96))).astype(
        np.float32
    )
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    found = spread(torch.from_numpy(some), 20)
    assert len(set(found)) == 20
    greedy = found[:1]
    while len(greedy) < 20:
        rest = [place for place in range(150) if place not in greedy]
        greedy.append(max(rest, key=lambda place: vendi_score(some[[*greedy, place]])))
    assert vendi_score(some[found]) > 0.97 * vendi_score(some[greedy])
    drawn = [vendi_score(some[random.choice(150, 20, replace=False)]) for _ in range(50)]
    assert vendi_score(some[found]) > 1.2 * max(drawn)


def test_clusters_are_those_that_were_planted() -> None:
    random = np.random.default_rng(2)
    centres = random.normal(size=(6, 64))
    groups = np.repeat(np.arange(6), [30, 20, 9, 3, 1, 1])
    random.shuffle(groups)
    some = torch.tensor(centres[groups] + 0.2 * random.normal(size=(64, 64)))
    labels = cluster(torch.nn.functional.normalize(some, dim=1), 6, 20).numpy()
    assert len(set(zip(groups.tolist(), labels.tolist(), strict=True))) == len(set(labels.tolist())) == 6
    same = torch.ones(5, 64) / 8
    assert cluster(same, 3, 20).shape == (5,)


@pytest.mark.parametrize("seed", [0, 1])
def test_prismatic_keeps_all_outliers(tiny_model: Path, tmp_path: Path, seed: int) -> None:
    rows = planted()
    for options in ({}, {"rows": 16}):
        selection = PrismaticSelection(model_path=str(tiny_model), **options)
        kept, figures = chosen(selection, rows, tmp_path, seed)
        counts = Counter(kept)
        assert counts["outlier"] == 4
        assert len(kept) <= options.get("rows", 50)
        assert figures["clusters"] == 10
    assert min(counts[group] for group in ("sum", "hello", "count")) >= 1, "a fair share leaves no group out"


def test_g_vendi_measures_and_chooses_diversity(tiny_model: Path, tmp_path: Path) -> None:
    proxy = {"model_path": str(tiny_model)}
    rows = planted(10)
    kept, measured = chosen(GVendiSelection(**proxy), rows, tmp_path / "all")
    assert len(kept) == len(rows)
    assert measured["g_vendi_before"] == measured["g_vendi_after"]
    repeated = [{**row, "id": f"{row['id']}-{again}"} for row in rows[:17] for again in range(2)]
    _, twice = chosen(GVendiSelection(**proxy), repeated, tmp_path / "twice")
    _, once = chosen(GVendiSelection(**proxy), rows[:17], tmp_path / "once")
    assert twice["g_vendi_before"] == pytest.approx(once["g_vendi_before"], rel=1e-4)
    assert twice["g_vendi_before"] < measured["g_vendi_before"]
    kept, figures = chosen(GVendiSelection(**proxy, rows=10), rows, tmp_path / "all")
    assert len(kept) == 10
    assert Counter(kept)["outlier"] == 4
    assert figures["g_vendi_before"] == measured["g_vendi_before"]
    some = np.memmap(tmp_path / "all" / "work" / "gradients.f32", np.float32, "r").reshape(-1, 1024)
    drawn = [vendi_score(some[np.random.default_rng(at).choice(len(rows), 10, replace=False)]) for at in range(50)]
    assert figures["g_vendi_after"] > max(drawn)


def test_rows_without_a_gradient_say_why(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "fine", "prompt": "a", "response": "b"},
        {"id": "marker", "prompt": "a <|im_end|>", "response": "b"},
        {"id": "long", "prompt": "a b c d e f " * 30, "response": "b"},
        {"id": "cut", "prompt": "a", "response": "b c d e " * 100},
    ]
    path = written(tmp_path / "rows.jsonl", rows)
    for selection in (
        GVendiSelection(model_path=str(tiny_model), max_tokens=64),
        PrismaticSelection(model_path=str(tiny_model), max_tokens=64, rows=4),
    ):
        found = list(selection.choose(path, tmp_path / "work", seed=0, progress=Progress))
        assert found == [None, "no gradient: special_token_in_text", "no gradient: prompt over max_tokens", None]
    empty = written(tmp_path / "empty.jsonl", [])
    assert list(PrismaticSelection(model_path=str(tiny_model)).choose(
        empty, tmp_path / "none", seed=0, progress=Progress
    )) == []  # fmt: skip
    with pytest.raises(RequestError, match="nowhere: no such model directory"):
        list(GVendiSelection(model_path="nowhere").choose(path, tmp_path / "new", seed=0, progress=Progress))


JOB = """
import sys
from pathlib import Path
from data_prep.selection import PrismaticSelection, gradients
from reasonforge.progress import Progress

gradients.SHARD_ROWS = 24
model, rows, root = sys.argv[1:]
selection = PrismaticSelection(model_path=model, dimensions=64, rows=20)
reasons = list(selection.choose(Path(rows), Path(root) / "work", seed=0, progress=Progress))
(Path(root) / "reasons").write_text(repr(reasons))
"""


def test_a_kill_costs_one_shard_at_most(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"id": str(at), "prompt": f"Count to {at}.", "response": f"{at} {at * at}"} for at in range(80)]
    path, script = written(tmp_path / "rows.jsonl", rows), tmp_path / "job.py"
    script.write_text(JOB)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert not run(script, tiny_model, path, tmp_path / "whole")
    work = tmp_path / "killed" / "work"
    assert run(script, tiny_model, path, tmp_path / "killed", kill_at=work / "gradients-000000.jsonl")
    done = (work / "gradients-000000.jsonl").stat().st_mtime_ns
    assert not run(script, tiny_model, path, tmp_path / "killed")
    assert (work / "gradients-000000.jsonl").stat().st_mtime_ns == done
    for name in ("reasons", "work/gradients.f32", "work/figures.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
