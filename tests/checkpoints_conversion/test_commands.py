"""What the commands print: progress that ends at its total, sizes for people, and the card that an export writes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tiny_checkpoints import edit_json, make_model, to_huggingface, to_megatron

from checkpoints_conversion.cli import convert
from reasonforge.display import data_size


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(convert, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def assert_ends_at_its_total(done: Result, title: str) -> None:
    last = done.stderr.splitlines()[-1]
    found = re.match(rf"{title}: (\d+)/(\d+) bytes", last)
    assert found is not None, last
    assert int(found[1]) == int(found[2]) > 0


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    assert_ends_at_its_total(run("import", tmp_path / "hf", tmp_path / "megatron"), "importing")
    assert_ends_at_its_total(run("export", tmp_path / "megatron", tmp_path / "out"), "exporting")
    assert_ends_at_its_total(run("import", tmp_path / "hf", tmp_path / "cast", "--dtype", "bfloat16"), "importing")
    parts = [f"{tmp_path / 'hf'}=0.5", f"{tmp_path / 'out'}=0.5"]
    assert_ends_at_its_total(run("merge", *parts, "--into", tmp_path / "merged"), "merging")
    assert_ends_at_its_total(run("verify", tmp_path / "megatron"), "checking")
    assert_ends_at_its_total(run("verify", tmp_path / "megatron", tmp_path / "out"), "comparing")


def test_small_sizes_are_told(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    said = run("import", tmp_path / "hf", tmp_path / "megatron").stdout
    assert re.search(r"converted, \d+(\.\d+)? KB\n$", said), said
    assert re.search(r"sound: \d+ tensors, \d+(\.\d+)? KB\n$", run("verify", tmp_path / "megatron").stdout)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 KB"),
        (9994, "9.99 KB"),
        (9996, "10.0 KB"),
        (99_960, "100 KB"),
        (999_600, "1.00 MB"),
        (4_096_000, "4.10 MB"),
        (988_000_000, "988 MB"),
        (15_231_000_000, "15.2 GB"),
        (2_500_000_000_000, "2.50 TB"),
        (1_234_000_000_000_000, "1234 TB"),
    ],
)
def test_sizes(count: int, told: str) -> None:
    assert data_size(count) == told


def front_matter(card: str) -> Any:
    start, matter, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter), body


def test_an_export_without_a_card_gets_one(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen3", dtype="bfloat16", tie_word_embeddings=True)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "out", max_shard_bytes=20_000)
    matter, body = front_matter((tmp_path / "out/README.md").read_text())
    assert matter == {"library_name": "transformers", "tags": ["qwen3", "megatron", "reasonforge"]}
    parameters = sum(
        parameter.numel() for parameter in make_model(tmp_path / "hf2", "qwen3", tie_word_embeddings=True).parameters()
    )
    assert f"| parameters | {parameters:,} |" in body
    assert "| type of the weights | bfloat16 |" in body
    assert "Converted from a Megatron-LM checkpoint, iteration 1 by reasonforge" in body
    assert str(tmp_path) not in body
    to_huggingface(tmp_path / "megatron", tmp_path / "again", max_shard_bytes=20_000)
    assert (tmp_path / "again/README.md").read_bytes() == (tmp_path / "out/README.md").read_bytes()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("/models/mine", False),
        ("mine", False),
        ("a: b/c", False),
        ("../x", False),
        (7, False),
    ],
)
def test_the_base_is_named_where_it_is_known(name: object, known: bool, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen3")
    edit_json(tmp_path / "hf/config.json", _name_or_path=name)
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "out")
    matter, body = front_matter((tmp_path / "out/README.md").read_text())
    assert matter.get("base_model") == (name if known else None)
    assert ("| base model |" in body) == known


def test_a_card_that_travels_is_kept(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen3")
    (tmp_path / "hf/README.md").write_text("our own")
    to_megatron(tmp_path / "hf", tmp_path / "megatron")
    to_huggingface(tmp_path / "megatron", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == "our own"


@pytest.mark.parametrize("directory", ["megatron", "nemo", "bridge"])
def test_every_directory_is_an_option(directory: str, tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "qwen2")
    run("import", tmp_path / "hf", tmp_path / "megatron", "--directory", directory)
    run("export", tmp_path / "megatron", tmp_path / "out")
    assert run("verify", tmp_path / "megatron", tmp_path / "out").stdout.startswith("equal: ")
    assert run("verify", tmp_path / "megatron").stdout.startswith("sound: ")
    assert f'"format": "{directory}"' in run("inspect", tmp_path / "megatron", "--json").stdout
