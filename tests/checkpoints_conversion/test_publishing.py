"""A conversion appears whole or not at all; killed at any instant it goes on; whoever copies, the bytes are equal."""

import errno
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from large_model import digests, make_large_model, start
from tiny_checkpoints import assert_same_weights, counter, make_model, to_huggingface, to_megatron

from checkpoints_conversion import copying, publishing
from checkpoints_conversion.exporting import MAX_SHARD_BYTES, export_checkpoint
from checkpoints_conversion.importing import ImportOptions, import_checkpoint
from checkpoints_conversion.publishing import RECEIPT, Job, publish
from reasonforge.errors import RequestError
from reasonforge.files import read_json


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large")
    make_large_model(place / "hf")
    return place


@pytest.mark.parametrize("verb", ["import", "export"])
def test_killed_at_any_instant_it_goes_on(verb: str, large: Path, tmp_path: Path) -> None:
    source = large / "hf"
    if verb == "export":
        source = tmp_path / "megatron"
        to_megatron(large / "hf", source)
    whole = start(verb, source, tmp_path / "whole")
    began = time.monotonic()
    assert whole.wait() == 0
    took = time.monotonic() - began
    out = tmp_path / "out"
    workspace = tmp_path / ".out.converting"
    kept: list[int] = []
    for attempt in range(40):
        process = start(verb, source, out)
        time.sleep(took * attempt / 40)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            break
        kept.append(sum(len(journal.read_text().split()) for journal in workspace.glob("*/done.*")))
    assert kept == sorted(kept), "what was done is kept"
    assert any(kept), "no kill came in the middle"
    assert start(verb, source, out).wait() == 0
    assert digests(out) == digests(tmp_path / "whole")
    assert not workspace.exists()


def test_a_result_is_made_once(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    assert not to_megatron(tmp_path / "hf", tmp_path / "out").already_done
    before = (tmp_path / "out" / RECEIPT).stat().st_mtime_ns
    assert to_megatron(tmp_path / "hf", tmp_path / "out").already_done
    assert (tmp_path / "out" / RECEIPT).stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="is already there and is not this conversion"):
        to_megatron(tmp_path / "hf", tmp_path / "out", vocabulary_multiple=8)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    with pytest.raises(RequestError, match="is already there and is not this conversion"):
        to_megatron(tmp_path / "hf", tmp_path / "taken")


def test_a_changed_source_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "hf", "qwen2")

    def stop(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk broke")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_seal", stop)
        with pytest.raises(OSError, match="the disk broke"):
            to_megatron(tmp_path / "hf", tmp_path / "out")
    assert next(tmp_path.glob(".out.converting/*/done.0")).read_text()
    shutil.rmtree(tmp_path / "hf")
    make_model(tmp_path / "hf", "qwen2", vocab_size=90)
    to_megatron(tmp_path / "hf", tmp_path / "out")
    to_huggingface(tmp_path / "out", tmp_path / "back")
    assert_same_weights(tmp_path / "hf", tmp_path / "back")


def test_the_receipt_names_every_file(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    to_megatron(tmp_path / "hf", tmp_path / "out")
    receipt = read_json(tmp_path / "out" / RECEIPT)
    assert set(receipt["files"]) == set(digests(tmp_path / "out"))
    assert all((tmp_path / "out" / name).stat().st_size == size for name, size in receipt["files"].items())
    assert set(receipt["source"]) == {"model.safetensors", "config.json", "generation_config.json"}


def test_too_little_disk_is_said_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "hf", "qwen2")
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: Full)
    with pytest.raises(RequestError, match=r"needs 1\d\.\d MB, but its file system has 4\.10 KB free"):
        to_megatron(tmp_path / "hf", tmp_path / "out")
    assert not list(tmp_path.rglob("*.distcp"))
    monkeypatch.setattr(os, "statvfs", real)
    to_megatron(tmp_path / "hf", tmp_path / "out")


def test_two_processes_do_not_meet(tmp_path: Path) -> None:
    import fcntl

    make_model(tmp_path / "hf", "qwen2")
    (tmp_path / ".out.converting").mkdir()
    descriptor = os.open(tmp_path / ".out.converting/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RequestError, match="another process is converting to it"):
        to_megatron(tmp_path / "hf", tmp_path / "out")
    os.close(descriptor)


def test_workers_and_ways_to_copy_make_no_difference(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker or three, by the kernel or through the buffer: the same files."""
    copied: list[int] = []
    real = os.copy_file_range

    def counting(*arguments: int) -> int:
        copied.append(real(*arguments))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", counting)
    import_checkpoint(large / "hf", tmp_path / "one", ImportOptions(), 1, counter)
    import_checkpoint(large / "hf", tmp_path / "three", ImportOptions(), 3, counter)
    export_checkpoint(tmp_path / "one", tmp_path / "by-kernel", None, MAX_SHARD_BYTES, 3, counter)
    assert sum(copied) > 100e6, "the kernel copied the whole pages"

    def refusing(*_: int) -> int:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refusing)
    export_checkpoint(tmp_path / "three", tmp_path / "by-buffer", None, MAX_SHARD_BYTES, 1, counter)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")
    assert digests(tmp_path / "by-kernel") == digests(tmp_path / "by-buffer")
    assert_same_weights(large / "hf", tmp_path / "by-buffer")


def test_a_source_that_shrinks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "hf", "qwen2")
    real = copying.carry_out

    def shrink_first(*arguments: Any) -> None:
        os.truncate(tmp_path / "hf/model.safetensors", 20_000)
        real(*arguments)

    monkeypatch.setattr(publishing, "carry_out", shrink_first)
    with pytest.raises(RequestError, match="before its tensors do"):
        to_megatron(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_kill_leaves_of_a_small_file_is_not_published(tmp_path: Path) -> None:
    def killed(tree: Path) -> None:
        (tree / ".config.json.7.tmp").write_text("{")
        (tree / RECEIPT).write_text("{}")
        raise KeyboardInterrupt

    def whole(tree: Path) -> None:
        (tree / "config.json").write_text("{}")

    job = Job(tmp_path / "out", {"conversion": "test"}, {}, [], killed)
    with pytest.raises(KeyboardInterrupt):
        publish(job, 1, counter)
    publish(replace(job, finish=whole), 1, counter)
    assert {path.name for path in job.destination.iterdir()} == {"config.json", RECEIPT}
    assert set(read_json(job.destination / RECEIPT)["files"]) == {"config.json"}
