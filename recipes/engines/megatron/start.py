"""How the processes of a training find each other, and where they start: `training` calls it first."""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from reasonforge.errors import RequestError
from recipes.engines.megatron.checkpoints import Checkpoints
from recipes.engines.megatron.rows import unfold
from recipes.ranks import Rank, meeting_point
from recipes.stage import StageContext

_PATIENCE = timedelta(hours=2)
"""How long the other processes wait for the first one, which writes the tokens as flat files meanwhile."""


@dataclass(frozen=True)
class Start:
    """What the first process decides for all: they must not find different things on the disk."""

    finished: bool
    """Whether an earlier attempt trained to the end."""
    checkpoint: str | None
    """Where to go on; None for the model's own weights."""


def meet(rank: Rank) -> Any:
    """Wait for the other processes; what comes back serves to tell them something, and torch.distributed later.

    Lightning and Megatron-Bridge read the variables that torchrun sets, so they are set for them whoever started us.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = meeting_point(rank)
    store = TCPStore(host, port, rank.size, rank.first, timeout=_PATIENCE, wait_for_workers=True)
    own: dict[str, object] = {
        "RANK": rank.number,
        "WORLD_SIZE": rank.size,
        "LOCAL_RANK": rank.local,
        "GROUP_RANK": rank.node,
    }
    own |= {"LOCAL_WORLD_SIZE": rank.per_node, "MASTER_ADDR": host, "MASTER_PORT": store.port}
    os.environ.update({name: str(value) for name, value in own.items()})
    return PrefixStore("reasonforge", store)


def decide_start(context: StageContext, checkpoints: Checkpoints, store: Any) -> Start:
    """Prepare the scratch in the first process, and let all know where to start. An error there is everybody's."""
    if context.rank.first:
        try:
            checkpoints.folder.mkdir(parents=True, exist_ok=True)
            checkpoints.discard_torn()
            for name, tokens in token_files(context).items():
                if not (context.scratch / name).exists():
                    unfold(tokens, context.scratch / name)
        except RequestError as error:
            store.set("start", json.dumps({"error": [str(item) for item in error.args]}))
            raise
        last = checkpoints.last_whole()
        store.set("start", json.dumps({"finished": checkpoints.is_finished, "checkpoint": str(last) if last else None}))
    found = json.loads(store.get("start"))
    if "error" in found:
        raise RequestError("the first process", found["error"][0])
    return Start(**found)


def token_files(context: StageContext) -> dict[str, Path]:
    """The parquet files of the tokens artifact, by the names of their flat twins in the scratch."""
    folder = context.path("tokens")
    held_out = folder / "held_out.parquet"
    return {"rows": folder / "tokens.parquet"} | ({"held-out": held_out} if held_out.exists() else {})
