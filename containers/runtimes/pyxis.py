"""Pyxis, NVIDIA's container plugin of Slurm: srun itself puts the step into the image.

Read in its source, https://github.com/NVIDIA/pyxis at 0.24.0 (args.c, pyxis_slurmstepd.c) and its wiki
(https://github.com/NVIDIA/pyxis/wiki/Usage).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from containers.runtimes.base import (
    Mount,
    Wrapped,
    check_environment,
    check_names,
    need_absolute,
    need_image,
    parse_mounts,
    refuse_characters,
)
from reasonforge.config import Strict
from reasonforge.errors import RequestError

# ',' parts the mounts. The others end up in double quotes in a script that enroot's bash reads; fstab's blanks are
# escaped only since 0.24 (April 2026).
_NOT_IN_A_PATH = ',"$`\\ \t'


class PyxisRuntime(Strict):
    """`srun --container-image=...`. GPUs come in by the image's NVIDIA_VISIBLE_DEVICES, which NGC's images set."""

    type: Literal["pyxis"] = "pyxis"
    """Which runtime this is."""
    mount_home: bool = False
    """Whether the container sees the user's home: what pip installed there would then hide what the image has. Off
    in pyxis' own example of a cluster (wiki, Setup: ENROOT_MOUNT_HOME n)."""
    entrypoint: bool = False
    """Whether the image's entrypoint runs first. Pyxis' default; NGC's entrypoints only print a banner."""

    def wrap(
        self,
        command: Sequence[str],
        image: str | None,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        inherit: Sequence[str] = (),
    ) -> Wrapped:
        """Options for srun. All variables of the step come in, but the image's own win, unless they are named: values
        do not pass through pyxis' parser, only names (--container-env).

        Args:
            command: what to run in the container.
            image: a squashfs file by its absolute path, or an image as in `docker://REGISTRY#IMAGE:TAG`.
            mounts: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro.
            environment: variables with their values.
            workdir: where the command starts; in the container.
            inherit: variables that the starting process will have, such as secrets.
        """
        image = need_image(image, self.type)
        if image.endswith((".sqsh", ".squashfs")) and not image.startswith("/"):
            raise RequestError(f"image {image!r}", "pyxis takes it for one of a registry", "the full path of the file")
        check_environment(environment)
        check_names(inherit)
        names = sorted({*environment, *inherit})
        bound = ",".join(_mount(mount) for mount in parse_mounts(mounts))
        arguments = [
            f"--container-image={image}",
            *([f"--container-mounts={bound}"] if bound else []),
            f"--container-workdir={need_absolute(workdir)}",
            "--container-mount-home" if self.mount_home else "--no-container-mount-home",
            "--container-entrypoint" if self.entrypoint else "--no-container-entrypoint",
            *([f"--container-env={','.join(names)}"] if names else []),
        ]
        return Wrapped(tuple(command), tuple(arguments), dict(environment))


def _mount(mount: Mount) -> str:
    refuse_characters(mount, _NOT_IN_A_PATH, "pyxis")
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")
