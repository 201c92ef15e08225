import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasonforge.artifacts import (
    RECEIPT,
    Artifact,
    Cost,
    InputRecord,
    Receipt,
    content_digest,
    hash_files,
    load,
    seal,
    stage_key,
    verify,
)
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, sha256_text

A, B = (InputRecord(stage=name, kind="problems", digest=name * 4) for name in "ab")


def artifact(directory: Path, **changes: Any) -> Artifact:
    (directory / "sub").mkdir(parents=True)
    (directory / "rows.jsonl").write_text('{"a": 1}\n')
    (directory / "sub" / "empty").touch()
    files = hash_files(directory)
    cost = Cost(started_at="2026-01-01T00:00:00+00:00", wall_s=1.5, cpu_s=2.0, peak_rss_bytes=3, attempt=1)
    receipt = Receipt(
        stage="s",
        stage_type="problems",
        kind="problems",
        key="k",
        config={"seed": 0, "rate": 1e-6},
        inputs={"x": A},
        files=files,
        digest=content_digest(files),
        counts={"rows": 1},
        environment={},
        cost=cost,
        lineage={},
    )
    return seal(directory, receipt.model_copy(update=changes))


def test_a_sealed_directory_opens_and_verifies(tmp_path: Path) -> None:
    made = artifact(tmp_path / "a")
    assert load(tmp_path / "a") == verify(tmp_path / "a") == made
    assert set(made.receipt.files) == {"rows.jsonl", "sub/empty"}
    assert made.receipt.files["rows.jsonl"].bytes == 9
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert verify(tmp_path / "moved").digest == made.digest


def test_the_digest_is_of_names_and_content_alone(tmp_path: Path) -> None:
    first = artifact(tmp_path / "a", key="other", counts={})
    os.utime(tmp_path / "a" / "rows.jsonl", (0, 0))
    assert artifact(tmp_path / "b").digest == first.digest == content_digest(hash_files(tmp_path / "a"))
    (tmp_path / "a" / "rows.jsonl").rename(tmp_path / "a" / "other.jsonl")
    renamed = content_digest(hash_files(tmp_path / "a"))
    (tmp_path / "b" / "rows.jsonl").write_text('{"a": 2}\n')
    assert len({renamed, first.digest, content_digest(hash_files(tmp_path / "b"))}) == 3


def edit(change: Callable[[dict[str, Any]], Any], mend: bool = False) -> Callable[[Path], object]:
    """Change the receipt's JSON; `mend` writes a fitting checksum, as one who means it would."""

    def apply(directory: Path) -> None:
        body = json.loads((directory / RECEIPT).read_text())
        change(body)
        if mend:
            del body["checksum"]
            body["checksum"] = sha256_text(canonical_json(body))
        (directory / RECEIPT).write_text(json.dumps(body))

    return apply


@pytest.mark.parametrize(
    ("harm", "file", "said"),
    [
        (edit(lambda body: body["cost"].update(wall_s=0.1)), RECEIPT, "altered after it was written: its checksum"),
        (edit(lambda body: body.pop("checksum")), RECEIPT, "altered after it was written: its checksum"),
        (edit(lambda body: body["cost"].update(wall_s=float("nan"))), RECEIPT, "altered after it was written"),
        (edit(lambda body: body["counts"].update(more=1)), RECEIPT, "altered after it was written"),
        (edit(lambda body: body.update(format=2), mend=True), RECEIPT, "not a receipt of this version: format: "),
        (edit(lambda body: body.pop("lineage"), mend=True), RECEIPT, "not a receipt of this version: lineage: "),
        (lambda path: (path / RECEIPT).write_text("[1]"), RECEIPT, "altered after it was written"),
        (lambda path: (path / RECEIPT).write_text('{"a": 1'), f"{RECEIPT}:1", "not JSON: "),
        (lambda path: (path / RECEIPT).write_bytes(b'{"a": "\xff"}'), RECEIPT, "not JSON: not UTF-8"),
        (lambda path: (path / RECEIPT).unlink(), "", "no receipt.json, so no finished artifact"),
        (lambda path: (path / "rows.jsonl").write_text("{}\n"), "rows.jsonl", "3 bytes, but the receipt says 9"),
        (lambda path: (path / "sub" / "empty").unlink(), "sub/empty", "missing, though the receipt lists it"),
    ],
)
def test_damage_is_seen_when_opened(tmp_path: Path, harm: Callable[[Path], object], file: str, said: str) -> None:
    artifact(tmp_path / "a")
    harm(tmp_path / "a")
    for look in (load, verify):
        with pytest.raises(RequestError) as caught:
            look(tmp_path / "a")
        assert str(caught.value).startswith(f"{tmp_path / 'a' / file}: {said}")
        assert "\n" not in str(caught.value)


def test_damage_that_only_reading_shows(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    (tmp_path / "a" / "rows.jsonl").write_text('{"a": 2}\n')
    load(tmp_path / "a")
    with pytest.raises(RequestError, match=r"rows\.jsonl: its content is not what the receipt's SHA-256 says"):
        verify(tmp_path / "a")
    (tmp_path / "a" / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "a" / "more").touch()
    with pytest.raises(RequestError, match=r"more: not listed in the receipt"):
        verify(tmp_path / "a")


def test_the_key_follows_what_decides_the_output() -> None:
    config = {"seed": 0, "options": {"a": 1, "b": [1, 2]}}
    key = stage_key("curate", 1, config, {"traces": A})
    assert key == stage_key("curate", 1, {"options": {"b": [1, 2], "a": 1}, "seed": 0}, {"traces": A})
    assert key == stage_key("curate", 1, config, {"traces": InputRecord(stage="z", kind="problems", digest=A.digest)})
    others = [
        stage_key("curate", 2, config, {"traces": A}),
        stage_key("tokenize", 1, config, {"traces": A}),
        stage_key("curate", 1, {**config, "seed": 1}, {"traces": A}),
        stage_key("curate", 1, config, {"traces": B}),
        stage_key("curate", 1, config, {"problems": A}),
        stage_key("curate", 1, config, {"traces": A, "problems": B}),
        stage_key("curate", 1, config, {"problems": B, "traces": A}),
    ]
    assert len({key, *others}) == 8
