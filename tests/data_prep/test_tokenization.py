import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import killing
import numpy as np
import pyarrow.parquet as pq
import pytest
from bpe_fixture import save_bpe
from tokenizer_fixture import CHATML, save_tokenizer

from data_prep.tokenization import dataset as tokenization
from data_prep.tokenization import rows as chat_rows
from data_prep.tokenization.chat import ChatTokenizer, Tokenized
from data_prep.tokenization.dataset import Tokenization, finish, tokenize_file, tokenize_part, tokenize_rows
from reasonforge.artifacts import Artifact
from reasonforge.config import key_config
from reasonforge.errors import RequestError, StageError
from reasonforge.files import read_json, read_jsonl, sha256_file, sha256_text, write_jsonl
from reasonforge.progress import Progress
from recipes.stage import StageContext
from recipes.stages.tokenize import TokenizeStage

Row = dict[str, Any]
FILES = ("tokens.parquet", "dropped.jsonl", "tokens.json")
GOOD = "<think>\n2 and 2 make 4\n</think>\n\\boxed{4}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


def row(number: int, prompt: str = "What is 2+2?", response: str = GOOD) -> Row:
    return {"id": f"p{number}/0", "prompt": prompt, "response": response}


def encode(model: Path, prompt: str, response: str, max_tokens: int = 500) -> Tokenized | str:
    return ChatTokenizer(model, max_tokens).encode([row(0, prompt, response)])[0]


def load(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model), local_files_only=True)


def with_template(model: Path, directory: Path, template: str) -> Path:
    shutil.copytree(model, directory, dirs_exist_ok=True)
    (directory / "chat_template.jinja").write_text(template)
    return directory


def random_text(random: Random, pieces: Sequence[str]) -> str:
    return "".join(random.choices(pieces, k=random.randrange(12)))


def test_ids_and_mask_are_those_of_transformers(model: Path) -> None:
    """On many rows with white space, combining marks and emoji at the edges, and the reference made in another way."""
    random = Random(0)
    pieces = ["\n", "\n\n", " ", "the answer", "Hello", "abc", "\u0301", "é", "42", "+", "😀", "\\boxed{4}", "\t", "中"]
    rows = [
        row(n, random_text(random, pieces), random_text(random, [*pieces, "<think>", "</think>"])) for n in range(600)
    ]
    tokenizer = load(model)
    outcomes: Counter[str] = Counter()
    for one, found in zip(rows, ChatTokenizer(model, 10_000).encode(rows), strict=True):
        user, assistant = {"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["response"]}
        whole = tokenizer.apply_chat_template([user, assistant], return_assistant_tokens_mask=True, return_dict=True)
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=True)["input_ids"]
        outcomes[found if isinstance(found, str) else "kept"] += 1
        if isinstance(found, str):
            assert found in ("token_straddles_boundary", "prompt_tokenized_differently")
            assert whole["input_ids"][: len(prompt)] != prompt
            continue
        mask = [0] * found.prompt_tokens + [1] * (len(found.input_ids) - found.prompt_tokens)
        last = len(whole["assistant_masks"]) - whole["assistant_masks"][::-1].index(1)
        assert found.input_ids == whole["input_ids"][:last]
        assert mask == whole["assistant_masks"][:last]
        assert found.input_ids[-1] == tokenizer.eos_token_id
        assert found.input_ids[: found.prompt_tokens] == prompt
        assert found.ends_with_eos
    assert outcomes["kept"] > 300
    assert outcomes["token_straddles_boundary"] > 20


def test_a_response_that_merges_with_the_prompt_is_dropped(model: Path, tmp_path: Path) -> None:
    assert encode(model, "Hi", "\n\nHello") == "token_straddles_boundary"
    plain = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\nAssistant: ' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    assert encode(with_template(model, tmp_path / "plain", plain), "Hi", "Hello") == "token_straddles_boundary"
    ends_in_e = plain.replace("Assistant: ", "Reply here")
    directory = with_template(model, tmp_path / "mark", ends_in_e)
    # The accent composes with the prompt's last letter: the two bytes of the new letter are on both sides.
    assert encode(directory, "Hi", "\u0301abc") in ("token_straddles_boundary", "prompt_tokenized_differently")
    opened = plain.replace("Assistant: ", "<think>\\n")
    directory = with_template(model, tmp_path / "opened", opened)
    assert encode(directory, "Hi", "\nabc</think>4") == "token_straddles_boundary"
    kept = encode(directory, "Hi", "abc</think>4")
    assert isinstance(kept, Tokenized)
    assert load(model).decode(kept.input_ids[kept.prompt_tokens :]) == "abc</think>4<|im_end|>"


def test_a_prompt_that_is_split_in_another_way_is_dropped(model: Path, tmp_path: Path) -> None:
    """No token crosses the boundary, but two spaces are one token at the end of a text and two before a digit."""
    template = "{% for m in messages %}{{ m['content'] }}{{ ':  ' if m['role'] == 'user' else eos_token }}{% endfor %}"
    directory = with_template(model, tmp_path / "spaces", template)
    assert encode(directory, "Hi", "42") == "prompt_tokenized_differently"


def test_a_generation_prompt_may_open_the_thinking(model: Path, tmp_path: Path) -> None:
    template = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
    assert template != CHATML
    directory = with_template(model, tmp_path / "opens", template)
    found = encode(directory, "Hi", "<think>\nabc</think>4")
    assert isinstance(found, Tokenized)
    assert load(model).decode(found.input_ids[found.prompt_tokens :]) == "abc</think>4<|im_end|>"
    assert encode(directory, "Hi", "<think>\n\nabc</think>4") == "token_straddles_boundary"
    assert encode(directory, "Hi", "4") == "response_changed_by_template"


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("a<|im_end|>b", "x", "special_token_in_text"),
        ("a", "x<|im_start|>user", "special_token_in_text"),
        ("a", "x<|endoftext|>", "special_token_in_text"),
        ("what does <think> mean?", "x", "special_token_in_text"),
        ("a", "x" * 9000, "over_max_tokens"),
        ("a", "<think>x</think>y", None),
        ("a < b and [c]", "x <b> [d]", None),
    ],
)
def test_rows_are_dropped_with_their_reason(model: Path, prompt: str, response: str, expected: str | None) -> None:
    found = encode(model, prompt, response)
    assert (found if isinstance(found, str) else None) == expected


def test_max_tokens_is_included(model: Path) -> None:
    found = encode(model, "a", "b")
    assert isinstance(found, Tokenized)
    length = len(found.input_ids)
    assert encode(model, "a", "b", max_tokens=length) == found
    assert encode(model, "a", "b", max_tokens=length - 1) == "over_max_tokens"


def test_a_row_without_eos_is_kept_and_counted(model: Path, tmp_path: Path) -> None:
    other = save_tokenizer(tmp_path / "eos", eos="<|endoftext|>")
    summary = tokenize_rows([row(n) for n in range(3)], other, tmp_path / "tokens.parquet", max_tokens=100)
    assert (summary["rows"], summary["rows_without_eos"]) == (3, 3)
    assert tokenize_rows([row(0)], model, tmp_path / "tokens.parquet", max_tokens=100)["rows_without_eos"] == 0


def stage(directory: Path, model: Path, rows: Sequence[Row], **options: object) -> Row:
    """Run the stage as the launcher does, but for the receipt; returns its counts."""
    for name in ("out", "scratch"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    write_jsonl(directory / "dataset" / "dataset.jsonl", rows)
    one = TokenizeStage.model_validate({"inputs": {"dataset": "d", "model": "m"}, "max_tokens": 200, **options})
    inputs = {"dataset": Artifact(directory / "dataset", None), "model": Artifact(model, None)}  # type: ignore[arg-type]
    context = StageContext("tokenize", 0, inputs, directory / "out", directory / "scratch", directory / "progress.json")
    return one.run(context)


def test_the_artifact(model: Path, tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, response=GOOD * 40),
        row(2, prompt="a<|im_end|>"),
        row(3, response="four"),
        row(4, response="\n\nx"),
    ]
    counts = stage(tmp_path, model, rows)
    out = tmp_path / "out"
    table = pq.read_table(out / "tokens.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("input_ids", "list<element: int32>"), ("completion_mask", "list<element: int8>"), ("id", "string")
    ]  # fmt: skip
    kept = table.to_pylist()
    assert [one["id"] for one in kept] == ["p0/0", "p3/0"]
    tokenizer = load(model)
    for one, original in zip(kept, (rows[0], rows[3]), strict=True):
        ids, mask = one["input_ids"], one["completion_mask"]
        assert sorted(mask) == mask
        assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == original["response"] + "<|im_end|>"
    dropped = list(read_jsonl(out / "dropped.jsonl"))
    assert dropped == [
        {**rows[1], "dropped_by": "tokenize", "reason": "over_max_tokens"},
        {**rows[2], "dropped_by": "tokenize", "reason": "special_token_in_text"},
        {**rows[4], "dropped_by": "tokenize", "reason": "token_straddles_boundary"},
    ]
    summary = read_json(out / "tokens.json")
    lengths = [len(one["input_ids"]) for one in kept]
    assert (summary["rows"], summary["tokens"], summary["longest"]) == (2, sum(lengths), max(lengths))
    assert summary["completion_tokens"] == sum(sum(one["completion_mask"]) for one in kept)
    assert summary["tokenizer_sha256"] == sha256_file(model / "tokenizer.json")
    assert summary["chat_template_sha256"] == sha256_text(CHATML)
    assert summary["dropped"] == {"over_max_tokens": 1, "special_token_in_text": 1, "token_straddles_boundary": 1}
    edges, bins = summary["histogram"]["edges"], summary["histogram"]["counts"]
    assert len(edges) == len(bins) + 1
    assert bins == [sum(low <= n < high for n in lengths) for low, high in pairwise(edges)]
    assert (counts["rows"], counts["dropped_over_max_tokens"]) == (2, 1)


def test_in_process_and_from_a_file_are_the_same(model: Path, tmp_path: Path) -> None:
    rows = [row(n, prompt=f"What is {n}?", response=f"<think>\n{n}\n</think>\n{n}" * (n % 3 + 1)) for n in range(150)]
    stage(tmp_path, model, rows)
    tokenize_rows(rows, model, tmp_path / "direct.parquet", max_tokens=200)
    assert (tmp_path / "direct.parquet").read_bytes() == (tmp_path / "out" / "tokens.parquet").read_bytes()


def test_a_missing_file_is_named(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copytree(model, broken, dirs_exist_ok=True)
        (broken / name).unlink()
        with pytest.raises(RequestError, match=f"{name}: missing") as error:
            stage(tmp_path, broken, [row(0)])
        assert "\n" not in str(error.value)
        assert not list((tmp_path / "out").iterdir())
        shutil.rmtree(broken)


def test_a_damaged_tokenizer_is_one_line(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(RequestError, match=r"tokenizer.json:1: not JSON"):
        ChatTokenizer(tmp_path / "a", 10)
    shutil.copytree(model, tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match="cannot be loaded") as error:
        ChatTokenizer(tmp_path / "b", 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("message['content'] + '<|im_end|>' }}{% endgeneration %}",
         "message['content'].split('</think>')[-1] + '<|im_end|>' }}{% endgeneration %}", "leaves out the thinking"),
        ("'<|im_start|>assistant\\n' }}{% endif %}", "'<|im_start|>assistant\\nSure: ' }}{% endif %}", "'.*Sure: '"),
        ("{% for message in messages %}", "{{ raise_exception('no users') }}{% for message in messages %}", "no users"),
        ("{% for message in messages %}", "{% for message in", "it fails on a prompt"),
    ],
)  # fmt: skip
def test_an_unfit_template_is_refused(model: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CHATML
    with pytest.raises(RequestError, match=message) as error:
        ChatTokenizer(with_template(model, tmp_path / "unfit", CHATML.replace(old, new)), 100)
    assert "\n" not in str(error.value)


def test_a_template_that_changes_one_response_drops_that_row(model: Path, tmp_path: Path) -> None:
    changing = CHATML.replace("message['content'] + '<|im", "message['content'] | replace('five', '5') + '<|im")
    assert changing != CHATML
    directory = with_template(model, tmp_path / "changing", changing)
    assert encode(directory, "Hi", "five") == "response_changed_by_template"
    assert isinstance(encode(directory, "Hi", "four"), Tokenized)


def test_nothing_left_is_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="2 of them for 'over_max_tokens'; raise max_tokens, now 5"):
        stage(tmp_path, model, [row(0), row(1)], max_tokens=5)
    with pytest.raises(RequestError, match="no rows to tokenize"):
        stage(tmp_path / "empty", model, [])


def test_a_corrupt_line_is_named(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text(json.dumps(row(0)) + "\n\n{broken\n")
    with pytest.raises(RequestError, match=r"dataset.jsonl:3: not JSON"):
        tokenize_file(
            path, model, tmp_path, max_tokens=9, scratch=tmp_path, workers=1, progress=Progress("t", 2, "rows")
        )


def test_workers_are_not_part_of_the_stage_key() -> None:
    wired = {"inputs": {"dataset": "d", "model": "m"}, "max_tokens": 9}
    one, two = (TokenizeStage.model_validate({**wired, "workers": workers}) for workers in (1, 2))
    assert key_config(one) == key_config(two)


DRIVER = """
import sys
from pathlib import Path

import data_prep.tokenization.dataset
from data_prep.tokenization.dataset import Tokenization, finish, tokenize_part
from reasonforge.progress import Progress

if __name__ == "__main__":
    dataset, model, out, scratch = map(Path, sys.argv[1:5])
    parts, workers = map(int, sys.argv[5:7])
    data_prep.tokenization.dataset.SHARD_BYTES = 60_000
    plan = Tokenization(dataset, model, 4000, held_out=20, seed=5)
    progress = Progress("tokenizing", 0, "shards")
    for part in range(parts):
        tokenize_part(plan, part, parts, scratch=scratch, workers=workers, progress=progress)
    finish(plan, parts, out, scratch=scratch)
"""


def test_ten_kills_parts_and_workers_leave_no_trace(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILLs once a shard drawn by chance is there, and in the end; against an undisturbed run in this process."""
    model = save_bpe(tmp_path / "model")
    (model / "chat_template.jinja").write_text(CHATML)
    random = Random(1)
    pieces = ["the answer is ", "we add ", "17 ", "+ ", "25 ", "so\n", "\\frac{1}{2} ", "é", "\n\n", "😀 "]
    rows = [
        {**row(n, random_text(random, pieces), "so " + "".join(random.choices(pieces, k=random.randrange(1300)))),
         "problem_id": f"p{n // 3}"}
        for n in range(200)
    ]  # fmt: skip
    dataset, script, whole = tmp_path / "dataset.jsonl", tmp_path / "driver.py", tmp_path / "whole"
    write_jsonl(dataset, rows)
    script.write_text(DRIVER)
    monkeypatch.setattr(tokenization, "SHARD_BYTES", 60_000)
    plan = Tokenization(dataset, model, 4000, held_out=20, seed=5)
    whole.mkdir()
    tokenize_part(plan, 0, 1, scratch=tmp_path / "s", workers=1, progress=Progress("t", 0, ""))
    summary = finish(plan, 1, whole, scratch=tmp_path / "s")
    assert summary["dropped"]["over_max_tokens"] > 10
    assert len(plan.spans()) > 10
    kills = 0
    for parts, workers, wanted in ((1, 2, 4), (4, 1, 3), (7, 3, 3)):
        out, scratch = tmp_path / f"out-{parts}", tmp_path / f"scratch-{parts}"
        receipts = [path for part in range(parts) for path in tokenization._receipts(plan, part, parts, scratch)]
        killed, attempts = 0, 0
        while killed < wanted and attempts < 10:
            missing = [path for path in receipts if not path.exists()]
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            target = random.choice(missing[:5]) if missing else out / "tokens.parquet"
            killed += killing.run(script, dataset, model, out, scratch, parts, workers, kill_at=target)
            attempts += 1
        kills += killed
        shutil.rmtree(out)
        out.mkdir()
        assert not killing.run(script, dataset, model, out, scratch, parts, workers)
        for path in whole.iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes(), (parts, path.name)
    assert kills == 10
    assert {path.name for path in whole.iterdir()} == {*FILES, "held_out.parquet"}


def test_an_array_of_jobs_shares_the_stage(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts done by others, in any order and not all of them, and the rest by the stage itself."""
    monkeypatch.setattr(tokenization, "SHARD_BYTES", 1000)
    rows = [row(n, prompt=f"What is {n}?") for n in range(150)]
    stage(tmp_path / "alone", model, rows)
    shared = tmp_path / "shared"
    (shared / "scratch").mkdir(parents=True)
    write_jsonl(shared / "dataset" / "dataset.jsonl", rows)
    inputs = {"dataset": Artifact(shared / "dataset", None), "model": Artifact(model, None)}  # type: ignore[arg-type]
    one = TokenizeStage.model_validate(
        {"inputs": {"dataset": "d", "model": "m"}, "max_tokens": 200, "resources": {"array": 7}}
    )
    for part in (6, 0, 3):
        one.run_part(StageContext("t", 0, inputs, shared / "out", shared / "scratch", shared / f"{part}.json"), part)
    done = {path: path.stat().st_mtime_ns for path in (shared / "scratch").glob("part-0000[036]*/*.jsonl")}
    stage(shared, model, rows, resources={"array": 7})
    assert len(done) > 6
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for name in FILES:
        assert (shared / "out" / name).read_bytes() == (tmp_path / "alone" / "out" / name).read_bytes()


def test_whole_problems_are_held_out(model: Path, tmp_path: Path) -> None:
    rows = [{**row(n), "problem_id": f"p{n % 50}", "response": GOOD + str(n)} for n in range(200)]
    counts = stage(tmp_path, model, rows, held_out=30)
    tables = [pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("tokens", "held_out")]
    train, held = ([int(name[1:].split("/")[0]) for name in table["id"].to_pylist()] for table in tables)
    assert tables[0].schema == tables[1].schema
    assert sorted(train + held) == list(range(200))
    assert train == sorted(train)
    assert held == sorted(held)
    assert not {n % 50 for n in train} & {n % 50 for n in held}
    assert len(held) == 32  # whole problems of four rows
    told = {"held_out_rows": 32, "held_out_problems": 8, "rows": 168}
    assert {name: counts[name] for name in told} == told
    summary = read_json(tmp_path / "out" / "tokens.json")
    assert summary["held_out"]["tokens"] == sum(map(len, tables[1]["input_ids"].to_pylist()))
    assert summary["tokens"] == sum(map(len, tables[0]["input_ids"].to_pylist()))
    stage(tmp_path / "again", model, rows, held_out=30)
    assert (tmp_path / "again/out/held_out.parquet").read_bytes() == (tmp_path / "out/held_out.parquet").read_bytes()
    with pytest.raises(StageError, match="held_out takes all 200 rows"):
        stage(tmp_path / "all", model, rows, held_out=199)


def test_rows_without_problem_are_held_out_by_prompt(model: Path, tmp_path: Path) -> None:
    rows = [row(n, prompt=f"What is {n % 20}?") for n in range(100)]
    stage(tmp_path, model, rows, held_out=3)
    held = pq.read_table(tmp_path / "out" / "held_out.parquet")["id"].to_pylist()
    assert len(held) == 5
    assert len({int(name[1:].split("/")[0]) % 20 for name in held}) == 1


def test_packed_files_stand_beside_the_tokens(model: Path, tmp_path: Path) -> None:
    rows = [row(n, response=GOOD * (n % 4 + 1)) for n in range(60)]
    counts = stage(tmp_path, model, rows, packed={"formats": ["nemo", "bridge"], "size": 300, "seed": 3})
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {*FILES, "packed.npy", "packed.idx.parquet", "packed_metadata.json"}
    bins = pq.read_table(out / "packed.idx.parquet").to_pylist()
    assert [one["input_ids"] for one in np.load(out / "packed.npy", allow_pickle=True)] == [
        b["input_ids"] for b in bins
    ]
    packed = read_json(out / "tokens.json")["packed"]
    assert (counts["packed_bins"], packed["bins"]) == (len(bins), len(bins))
    tokens = sum(len(one["input_ids"]) for one in bins)
    assert tokens == counts["tokens"]
    assert packed["wasted"] == 300 * len(bins) - (tokens - 60)  # a row counts one less
    assert counts["packed_efficiency"] == packed["efficiency"] > 0.9


def test_a_pack_must_take_the_longest_row() -> None:
    wired = {"inputs": {"dataset": "d", "model": "m"}, "packed": {"formats": ["nemo"], "size": 100}}
    TokenizeStage.model_validate({**wired, "max_tokens": 101})
    with pytest.raises(ValueError, match=r"max_tokens is 102, but a pack of packed.size 100 takes rows of at most 101"):
        TokenizeStage.model_validate({**wired, "max_tokens": 102})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "prompt": "b"}', r":3: no column 'response'; the columns are 'id', 'prompt'"),
        ('{"id": "a", "prompt": 5, "response": "c"}', ":3: prompt: found int"),
        ('{"id": "a", "prompt": ["b"], "response": "c"}', ":3: prompt: found a list"),
        ('{"id": "a", "prompt": "b", "response": "\\ud800"}', ":3: response: a lone surrogate"),
        ("[]", ":3: found a JSON list"),
    ],
)
@pytest.mark.parametrize("decoder", ["msgspec", "json"])
def test_a_bad_line_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, line: str, message: str
) -> None:
    if decoder == "json":
        monkeypatch.setattr(chat_rows, "_decoder", lambda: chat_rows._nothing)
    path = tmp_path / "dataset.jsonl"
    path.write_text(json.dumps(row(0)) + "\n\n" + line + "\n")
    with pytest.raises(RequestError, match=message) as error:
        tokenize_file(
            path, model, tmp_path, max_tokens=9, scratch=tmp_path, workers=1, progress=Progress("t", 2, "rows")
        )
    assert "\n" not in str(error.value)


def test_rows_are_the_same_without_msgspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dataset.jsonl"
    others = [{"id": 7, "prompt": "é", "response": "\u3000", "x": float("nan")}, {**row(1), "problem_id": None}]
    path.write_text("\n".join(json.dumps(one) for one in [row(0), *others, {**row(2), "problem_id": 3}]))
    found = list(chat_rows.read_chats(path, (0, path.stat().st_size)))
    assert found[0].ids == ["p0/0", "7", "p1/0", "p2/0"]
    assert found[0].problems == ["What is 2+2?", "é", "What is 2+2?", "3"]
    monkeypatch.setattr(chat_rows, "_decoder", lambda: chat_rows._nothing)
    assert list(chat_rows.read_chats(path, (0, path.stat().st_size))) == found
