"""`problems` and megatron-core itself judge the same 1,000 random layouts alike.

megatron-core is taken from the directories .megatron/VERSION of the checkout, which `make megatron` fills
(`pip install --no-deps --target`), or from those under MEGATRON_CORE. Where there is none the tests say so and skip,
but on CI. The counts of each class go into the JUnit report (--junitxml).
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from checkpoints_conversion.spec import ModelSpec
from recipes.preflight.layout import BEYOND_CONSTRUCTION, Core, Problem, errors, problems
from recipes.preflight.parallelism import Batch, Parallelism

ROOT = Path(__file__).parents[2]
INSTALLED = Path(os.environ.get("MEGATRON_CORE", ROOT / ".megatron"))
SIDE = Path(__file__).parent / "megatron_layouts.py"
LAYOUTS = 1000

BUILDING = {
    "gpus", "expert_gpus", "heads", "groups", "qkv_rows", "layers", "virtual_without_pipeline", "chunks", "ffn",
    "expert_ffn", "experts_needed", "experts", "sequence_parallel_without_tensor", "context_needs_te",
    "sequence_parallel_needs_te",
}  # fmt: skip
"""Our rules that say what megatron-core refuses while it builds groups, configuration and model."""

CRASHES = {"experts_sequence_parallel"}
"""megatron-core 0.15.3 means to warn of it while it builds the configuration, and forgets to import `warnings`."""

RUNNING = {
    "batch": "batch", "schedule": "interleaved_rounds", "context": "sequence_by_context",
    "scatter": "sequence_by_tensor", "experts": "experts_sequence_parallel",
}  # fmt: skip
"""megatron-core's run-time checks that can be called on a CPU, and our rule for each."""


def random_layout(draw: random.Random) -> dict[str, Any]:
    """A layout that is mostly sound: each size may be odd, but seldom many are at once."""
    odd = draw.random() < 0.7

    def size(sound: list[Any], others: list[Any]) -> Any:
        return draw.choice(others if odd and draw.random() < 0.12 else sound)

    heads = size([8, 16, 32, 64], [6, 12, 28, 40])
    shares = [part for part in (1, 2, 4, 8, 16, 7) if heads % part == 0]
    experts = draw.choice([0, 0, 8, 16])
    tensor, pipeline = size([1, 1, 2, 4, 8], [3, 6, 7, 16]), size([1, 1, 2, 4], [3, 5, 8])
    context, expert = size([1, 1, 2], [3, 4]), size([1, 2, 4] if experts else [1], [2, 3, 8])
    expert_tensor = size([None, 1], [2, 3, 4])
    chunks = size([None, None, 2] if pipeline > 1 else [None], [1, 2, 3, 5])
    grids = (tensor * pipeline * context, (expert_tensor or tensor) * pipeline * expert)
    gpus = size([grids[0] * grids[1]], [*grids, 8, 16, 24, 64, 72])
    gpus = gpus if gpus <= 1024 else 512
    sound = [part for part in shares if part % tensor == 0]
    copies = max(gpus // grids[0], 1)
    micro = draw.choice([1, 1, 2, 3])
    return {
        "layers": size([8, 16], [6, 10, 12]),
        "hidden": draw.choice([256, 1024]),
        "heads": heads,
        "groups": draw.choice(sound if sound and draw.random() < 0.8 else shares),
        "head_dim": draw.choice([6, 64, 128]),
        "ffn": size([768, 3072], [770, 1001, 18944]),
        "vocabulary": draw.choice([1000, 128256, 151936]),
        "experts": experts,
        "experts_per_token": 2 if experts else 0,
        "expert_ffn": size([768, 1536], [770, 1001]) if experts else 0,
        "tensor": tensor,
        "pipeline": pipeline,
        "virtual_pipeline": chunks,
        "context": context,
        "expert": expert,
        "expert_tensor": expert_tensor,
        "sequence_parallel": size([tensor > 1], [True, False, False, False]),
        "sequence_length": size([4096, 8192], [4095, 4098, 1000, 36]),
        "micro": micro,
        "global_": size([micro * copies * pipeline * rounds for rounds in (1, 2, 3)], [copies * micro, 64, 100, 96]),
        "gpus": gpus,
        "transformer_engine": size([True], [False]),
    }


def ours(layout: dict[str, Any], core: Core) -> list[Problem]:
    """What preflight says of it."""
    rest = {"norm_epsilon": 1e-5, "rope_theta": 1e4, "tied": False, "positions": 8192}
    shape = {key: layout[key] for key in layout if key in ModelSpec.__dataclass_fields__}
    return errors(
        problems(
            ModelSpec(model_type="qwen3_moe" if layout["experts"] else "llama", architecture="", **shape, **rest),
            Parallelism(**{key: layout[key] for key in layout if key in Parallelism.model_fields}),
            Batch(**{key: layout[key] for key in layout if key in Batch.model_fields}),
            layout["gpus"],
            8,
            "bf16",
            core=core,
            transformer_engine=layout["transformer_engine"],
        )
    )


def theirs(layouts: list[dict[str, Any]], directory: Path) -> list[dict[str, str | None]]:
    """What megatron-core says of them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SIDE)],
        env=os.environ | {"PYTHONPATH": str(directory), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        input="".join(json.dumps(layout) + "\n" for layout in layouts),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def installed(version: str) -> Path:
    """The directory of a version; skips the test where there is none."""
    found = INSTALLED / version
    if not (found / "megatron").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{found} is missing: make megatron")
        pytest.skip(f"no megatron-core in {found}: make megatron")
    return found


@pytest.mark.parametrize("version", ["0.15.3", "0.16.1"])
def test_megatron_core_refuses_what_we_refuse_and_takes_what_we_take(version: str, record_property: Any) -> None:
    directory = installed(version)
    draw = random.Random(4)
    layouts = [random_layout(draw) for _ in range(LAYOUTS)]
    core: Core = "0.15" if version == "0.15.3" else "0.16"
    table, running = Counter[tuple[str, str]](), Counter[tuple[str, str, str]]()
    alone, disagreements = Counter[str](), []
    for layout, answers in zip(layouts, theirs(layouts, directory), strict=True):
        found = {problem.rule for problem in ours(layout, core)}
        alone.update(found if len(found) == 1 else ())
        refusals = {key: said for key, said in answers.items() if said}
        building = BUILDING | (CRASHES if core == "0.15" and layout["expert"] > 1 else set())
        pair = _verdict(found & building), _verdict({"world", "config", "model"} & refusals.keys())
        table[pair] += 1
        if pair[0] != pair[1]:
            disagreements.append(("building", layout, found, refusals))
        for check, rule in RUNNING.items():
            if check not in answers:
                continue
            pair = _verdict({rule} & found), _verdict({check} & refusals.keys())
            running[check, *pair] += 1
            if pair[0] != pair[1]:
                disagreements.append((check, layout, found, refusals))
    record_property("building: ours, megatron-core's", {" ".join(key): count for key, count in table.items()})
    record_property("running: check, ours, megatron-core's", {" ".join(key): count for key, count in running.items()})
    record_property("layouts with one error", dict(alone))
    assert not disagreements, f"{len(disagreements)}; the first: {disagreements[0]}"
    assert min(table["taken", "taken"], table["refused", "refused"]) > LAYOUTS / 4, table
    assert set(alone) <= BUILDING | BEYOND_CONSTRUCTION.keys(), "a rule of ours alone is named, with its reason"
    hidden = {"heads", "qkv_rows"} if core == "0.15" else set()  # there `groups` refuses them too
    assert set(alone) >= (BUILDING | set(RUNNING.values())) - hidden, "each rule decides some layout"
    assert all(running[check, said, said] > 5 for check in RUNNING for said in ("taken", "refused")), running


def _verdict(refusals: set[str]) -> str:
    return "refused" if refusals else "taken"
