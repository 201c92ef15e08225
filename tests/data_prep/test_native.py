"""Kernels are compiled once for all processes, again when their file has changed, and in memory where no disk will."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from data_prep.overlap import hashing, minhash
from data_prep.overlap.deduplication import NearDeduplicator, NearDuplicates
from data_prep.overlap.native import compiled
from data_prep.overlap.sketching import SketchedDeduplicator, sketch_rows

pytest.importorskip("numba")

KERNELS = """
def least(one, other):
    return min(one, other)


def total(numbers, most):
    sum = np.uint64(0)
    for place in range(len(numbers)):
        sum += np.uint64(numbers[place])
    return least(int(sum), most)
"""
SCRIPT = """
import json, kernels, numpy
from data_prep.overlap.native import compiled
total = compiled(kernels.total)
found = [total(numpy.arange(10, dtype=numpy.uint8), most) for most in (20, 1000)]
print(json.dumps([found, sum(total.stats.cache_hits.values()), sum(total.stats.cache_misses.values())]))
"""


def _least(one: int, other: int) -> int:
    return min(one, other)


def test_another_process_loads_what_was_compiled_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "kernels.py"
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    said = []
    for source in (KERNELS, KERNELS, KERNELS.replace("min(", "max(")):  # the change is one of the kernel that is called
        path.write_text(source)
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        said.append(json.loads(done.stdout))
    assert said == [[[20, 45], 0, 1], [[20, 45], 1, 0], [[45, 1000], 0, 1]]


def test_where_nothing_can_be_kept_a_kernel_is_compiled_all_the_same() -> None:
    """As root every directory can be written, but a source that is no file has none."""
    least = compiled(types.FunctionType(_least.__code__.replace(co_filename="<nowhere>"), {}))
    assert least is not None
    assert least(3, 2) == 2


def test_each_kernel_is_compiled_for_one_form_of_its_arrays(tmp_path: Path) -> None:
    """Signatures come from memory and from what others have sent, texts from the batch and from the disk."""
    rows = [{"id": str(number), "text": f"{'a b c d ' * 9}{number % 7}"} for number in range(1500)]
    config = NearDuplicates(columns=["text"], size=2)
    near = NearDeduplicator(config, tmp_path)
    assert sum(one is None for one in near.find(rows[:20]) + near.find(rows[20:])) == 7
    sent = np.frombuffer(sketch_rows(rows, config).tobytes(), np.uint8).reshape(len(rows), -1)
    found = SketchedDeduplicator(config, rows.__getitem__).find(sent, range(len(rows)))
    assert sum(one is None for one in found) == 7
    used = hashing._split_words, hashing.roll, hashing.shared_words, minhash._sketch, minhash._locate, minhash._pass
    for kernel in used:
        dispatcher = compiled(kernel)
        assert dispatcher is not None
        assert len(dispatcher.signatures) == 1, kernel  # type: ignore[attr-defined]


EXTENDED = """
import sys, kernels, numpy
from data_prep.overlap.native import compiled
assert compiled(kernels.total)(numpy.arange(10, dtype=numpy.uint8), 20) == 20
print([name for name in sys.modules if name.partition(".")[0] == "extension"])
"""


def test_no_extension_of_other_packages_is_imported(tmp_path: Path) -> None:
    """numba imports those that are installed before it compiles anything, unless it takes them for imported."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "extension.py").write_text("def register(): pass\n")
    (tmp_path / "extension-1.dist-info").mkdir()
    (tmp_path / "extension-1.dist-info/METADATA").write_text("Name: extension\nVersion: 1\n")
    points = tmp_path / "extension-1.dist-info/entry_points.txt"
    points.write_text("[numba_extensions]\ninit = extension:register\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", EXTENDED], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
