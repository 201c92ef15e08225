"""What all processes of a training agree on after each step: whether to stop, and what is wrong where a number is not
finite any more. The engines' callbacks call it.
"""

from typing import Any

from reasonforge.errors import StageError
from recipes.engines.megatron.metrics import Run

_NAMED_ROWS = 8


def agree(*flags: bool) -> list[bool]:
    """Each flag as true as it is in any process."""
    import torch

    tensor = torch.tensor([float(flag) for flag in flags], device="cuda")
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in tensor.tolist()]


def broken_at(run: Run, batch: int, outputs: list[Any]) -> StageError:
    """The error of a step whose loss or gradient is no longer finite; it names the rows of the micro-batches whose loss
    is not, or of the whole batch where the gradient alone is to blame. All processes call it and say the same."""
    import torch
    from megatron.core import parallel_state

    copies, copy = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    micro, size = run.engine.micro_batch_size, run.batches.size
    mine = [
        batch * size + (number * copies + copy) * micro + place
        for number, output in enumerate(outputs)
        if not all(bool(torch.isfinite(value).all()) for value in output.values())
        for place in range(micro)
    ]
    gathered: list[Any] = [None] * run.rank.size
    torch.distributed.all_gather_object(gathered, mine)
    positions = sorted({position for positions in gathered for position in positions})
    what = "loss" if positions else "gradient"
    rows = [row for place in positions or range(batch * size, (batch + 1) * size) for row in run.batches.members(place)]
    names = run.batches.rows.names(rows[:_NAMED_ROWS])
    more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
    last = run.checkpoints.last_whole()
    kept = f"the checkpoint of step {run.checkpoints.step(last)} is whole" if last else "there is no checkpoint yet"
    return StageError(
        f"step {batch + 1}: the {what} is not finite, with the rows {', '.join(names)}{more} of the tokens; {kept}; "
        "look at these rows, or lower learning_rate"
    )
