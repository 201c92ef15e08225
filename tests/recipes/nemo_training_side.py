"""Trainings in the real NeMo 2 on the CPU, one after the other: run by `nemo_cpu.py`, which explains itself.

    nemo_training_side.py JOB.json

A job is a list of trainings: `name`, `model`, `tokens` and `teacher` (directories or null), `engine` (its options),
`scratch`, `out`, `seed`. What a training raises goes into OUT.error; its counts into OUT.counts.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from reasonforge.errors import ReasonforgeError
from recipes.engines.nemo.options import NeMoEngine
from recipes.engines.nemo.training import train
from recipes.stage import StageContext


def forget() -> None:
    """Let the next training choose its batches anew."""
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    destroy_num_microbatches_calculator()


def run(job: dict[str, Any]) -> None:
    scratch, out = Path(job["scratch"]), Path(job["out"])
    scratch.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True)
    inputs = {name: SimpleNamespace(path=Path(job[name])) for name in ("model", "tokens", "teacher") if job.get(name)}
    context = StageContext(
        stage=job["name"],
        seed=job["seed"],
        inputs=inputs,
        out=out,
        scratch=scratch,
        progress_file=scratch / "progress.json",
    )
    try:
        counts = train(NeMoEngine.model_validate(job["engine"]), context)
        out.with_suffix(".counts").write_text(json.dumps(counts))
    except ReasonforgeError as error:
        out.with_suffix(".error").write_text(str(error))


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
        forget()


if __name__ == "__main__":
    main()
