"""`python -m benchmarks.data_scale`, small: it runs, both ways give the same, and memory is far from the limit."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tokenizer_fixture import save_tokenizer

ROOT = Path(__file__).parents[2]


def test_20_megabytes(tmp_path: Path) -> None:
    model = save_tokenizer(tmp_path / "model")
    words = ["--megabytes", "20", "--workers", "1", "2", "--index-rows", "0", "--directory", tmp_path, "--model", model]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_scale", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if re.match(r"\| [12] \|", line)]
    assert len(rows) == 2
    assert all(float(row[-3]) < 1024 for row in rows), done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing is left behind
