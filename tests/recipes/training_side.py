"""Trainings in the real NeMo 2 or Megatron-Bridge on the CPU, one after the other: run by `nemo_cpu.py` or
`bridge_cpu.py`, which explain themselves.

    training_side.py JOB.json

A job is a list of trainings: `name`, `model`, `tokens` and `teacher` (directories or null), `engine` (its options),
`scratch`, `out`, `seed`, and `cut_off` where its scratch is that of a training that is to lose its end, as one that was
killed before: how many checkpoints it loses, too. What a training raises goes into OUT.error; its counts into
OUT.counts. Several processes may do the trainings together.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from reasonforge.errors import ReasonforgeError
from recipes.engines.megatron_bridge import training as bridge
from recipes.engines.megatron_bridge.options import MegatronBridgeEngine
from recipes.engines.nemo import training as nemo
from recipes.engines.nemo.options import NeMoEngine
from recipes.ranks import Rank, find_rank
from recipes.stage import StageContext


def forget() -> None:
    """Let the next training begin anew, however this one ended."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine

    destroy_num_microbatches_calculator()
    destroy_rerun_state_machine()
    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def train(options: dict[str, Any], context: StageContext) -> dict[str, Any]:
    if options["type"] == "nemo":
        return nemo.train(NeMoEngine.model_validate(options), context)
    return bridge.train(MegatronBridgeEngine.model_validate(options), context)


def run(job: dict[str, Any], rank: Rank) -> None:
    scratch, out = Path(job["scratch"]), Path(job["out"])
    scratch.mkdir(parents=True, exist_ok=True)
    if "cut_off" in job:
        steps = sorted((scratch / "checkpoints").glob("step-*"))
        for lost in (scratch / "checkpoints/final", *steps[len(steps) - job["cut_off"] :]):
            shutil.rmtree(lost)
    out.mkdir(parents=True, exist_ok=True)
    inputs = {name: SimpleNamespace(path=Path(job[name])) for name in ("model", "tokens", "teacher") if job.get(name)}
    context = StageContext(
        stage=job["name"],
        seed=job["seed"],
        inputs=inputs,
        out=out,
        scratch=scratch,
        progress_file=scratch / "progress.json",
        rank=rank,
    )
    try:
        counts = train(job["engine"], context)
        if rank.first:
            out.with_suffix(".counts").write_text(json.dumps(counts))
    except ReasonforgeError as error:
        out.with_suffix(".error").write_text(str(error))


def main() -> None:
    rank = find_rank()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, rank)
        forget()


if __name__ == "__main__":
    main()
