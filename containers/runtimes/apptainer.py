"""Apptainer, the container runtime of most computing centres: each task is put into the image by `apptainer exec`.

User guide: https://apptainer.org/docs/user/main/ (environment_and_metadata, bind_paths_and_mounts, gpu), and its
source, https://github.com/apptainer/apptainer. Needs version 1.1 (September 2022) for --no-eval.
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
)
from reasonforge.config import Strict
from reasonforge.errors import RequestError


class ApptainerRuntime(Strict):
    """`apptainer exec`. The host's variables come in too, but the image's own win."""

    type: Literal["apptainer"] = "apptainer"
    """Which runtime this is."""
    nvidia: bool = True
    """--nv: the node's driver and GPUs go in. A node without them gets a warning."""
    mount_home: bool = False
    """Whether the container sees the user's home: what pip installed there would then hide what the image has.
    Apptainer's own default is yes."""

    def wrap(
        self,
        command: Sequence[str],
        image: str | None,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        inherit: Sequence[str] = (),
    ) -> Wrapped:
        """`apptainer exec` with options. Values go as APPTAINERENV_NAME in the environment: `--env` parts them at
        commas, and without --no-eval a shell in the container would evaluate them.

        Args:
            command: what to run in the container.
            image: a .sif file, a directory, or a URL such as `docker://...`.
            mounts: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro.
            environment: variables with their values.
            workdir: where the command starts; in the container.
            inherit: variables that the starting process will have, such as secrets: they come in by themselves.
        """
        image = need_image(image, self.type)
        check_environment(environment)
        check_names(inherit)
        if "HOME" in environment:
            raise RequestError("environment HOME", "apptainer does not let it be set", "set HF_HOME or the like")
        options = ["--no-eval", *(["--nv"] if self.nvidia else []), *([] if self.mount_home else ["--no-home"])]
        for mount in parse_mounts(mounts):
            options += ["--mount", _record(mount)]
        # --pwd is the old name of --cwd, which came with 1.3; all versions know it.
        return Wrapped(
            ("apptainer", "exec", *options, "--pwd", need_absolute(workdir), image, *command),
            environment={f"APPTAINERENV_{name}": value for name, value in environment.items()},
        )


def _record(mount: Mount) -> str:
    """--mount reads one record of CSV: a field in quotes may have commas, and quotes doubled."""
    fields = ["type=bind", f"src={mount.source}", f"dst={mount.target}", *(["ro"] if mount.read_only else [])]
    return ",".join('"' + field.replace('"', '""') + '"' if set(field) & set(',"') else field for field in fields)
