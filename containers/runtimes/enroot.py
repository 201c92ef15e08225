"""Enroot without pyxis: each task starts its own container from a squashfs file.

Read in its source and manual, https://github.com/NVIDIA/enroot at 4.1 (doc/cmd/start.md, doc/image-format.md,
src/runtime.sh, conf/hooks/98-nvidia.sh).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from containers.runtimes.base import (
    Mount,
    Wrapped,
    check_environment,
    check_names,
    need_absolute,
    need_image,
    parse_mounts,
    started_in,
)
from reasonforge.config import Strict
from reasonforge.errors import RequestError

_QUOTED = re.compile(r"""["'].*["']\s*""")
_FSTAB = str.maketrans({" ": r"\040", "\t": r"\011", "\\": r"\134"})


class EnrootRuntime(Strict):
    """`enroot start`. The container's environment begins empty, so what is to go in is named."""

    type: Literal["enroot"] = "enroot"
    """Which runtime this is."""
    gpus: bool = True
    """Whether the driver and the GPUs go in (hook 98-nvidia.sh, which needs nvidia-container-cli on the node)."""
    writable: bool = False
    """Whether the container may write to its own files; they are lost in the end. Enroot's default is no."""
    inherit: tuple[str, ...] = Field(
        default=(
            "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_STEP_ID", "SLURM_NTASKS",
            "SLURM_NNODES", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES",
        ),
        strict=False,
    )  # fmt: skip
    """Variables of each task that go in: what srun always sets and a training reads. One that is not set becomes
    empty, which CUDA_VISIBLE_DEVICES means on a node without GPUs."""

    def wrap(
        self,
        command: Sequence[str],
        image: str | None,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        inherit: Sequence[str] = (),
    ) -> Wrapped:
        """`enroot start` with options.

        Args:
            command: what to run in the container.
            image: a squashfs file by its absolute path, or a container's name.
            mounts: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro. enroot parts fields by ':' and reads fstab's escapes.
            environment: variables with their values, which stand in the command: not for secrets.
            workdir: where the command starts; in the container. enroot has no option for it.
            inherit: further variables that the starting process will have, such as secrets.
        """
        image = need_image(image, self.type)
        if "/" in image and not image.startswith("/"):
            raise RequestError(
                f"image {image!r}", "enroot starts files, not URLs", "enroot import --output /X.sqsh URL"
            )
        _check(environment)
        check_names([*self.inherit, *inherit])
        options = [option for mount in parse_mounts(mounts) for option in ("--mount", _fstab(mount))]
        for name in dict.fromkeys([*self.inherit, *inherit]):
            options += ["--env", name] if name not in environment else []
        gpus = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"} if self.gpus else {}
        for name, value in {**gpus, **environment}.items():
            options += ["--env", f"{name}={value}"]
        start = ["enroot", "start", *(["--rw"] if self.writable else []), *options, "--", image]
        return Wrapped((*start, *started_in(need_absolute(workdir), command)))


def _check(environment: Mapping[str, str]) -> None:
    """enroot takes quotes around a value away, and its own variables out (common::envfmt)."""
    check_environment(environment)
    for name, value in environment.items():
        if _QUOTED.fullmatch(value):
            raise RequestError(f"environment {name}", f"enroot takes the quotes of {value!r} away", "leave them out")
        if name.startswith("ENROOT_"):
            raise RequestError(f"environment {name}", "enroot keeps its own variables out", "set it in the prelude")


def _fstab(mount: Mount) -> str:
    flags = "x-create=auto,rbind" + (",ro" if mount.read_only else "")
    return f"{mount.source.translate(_FSTAB)}:{mount.target.translate(_FSTAB)}:none:{flags}"
