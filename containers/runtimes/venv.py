"""A Python virtual environment on a file system that all nodes see, in place of a container."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from containers.runtimes.base import Wrapped, check_names
from containers.runtimes.none import refuse_image
from reasonforge.config import Strict
from reasonforge.errors import RequestError

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_ACTIVATED = 'export VIRTUAL_ENV="$0" PATH="$0/bin:$PATH"; unset PYTHONHOME; exec "$@"'


class VenvRuntime(Strict):
    """What `activate` does, for one command: https://docs.python.org/3/library/venv.html#how-venvs-work."""

    type: Literal["venv"] = "venv"
    """Which runtime this is."""
    path: str
    """The environment's directory, absolute."""

    def wrap(
        self,
        command: Sequence[str],
        image: str | None,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        inherit: Sequence[str] = (),
    ) -> Wrapped:
        """The command with the environment's bin first in PATH; a command that is some python becomes the
        environment's. As on the host, mounts mean nothing and it starts where the step does.

        Raises RequestError where an image is given, or where there is no such environment here.
        """
        refuse_image(image, self.type)
        check_names(environment)
        python = Path(self.path) / "bin" / "python"
        if not python.is_absolute():
            raise RequestError(f"runtime.path {self.path!r}", "is not absolute", "the full path of the environment")
        if not python.exists():
            raise RequestError(
                f"runtime.path {self.path!r}", "is no virtual environment", f"python3 -m venv {self.path}"
            )
        if command and _PYTHON.fullmatch(Path(command[0]).name):
            command = [str(python), *command[1:]]
        return Wrapped(("sh", "-c", _ACTIVATED, self.path, *command), environment=dict(environment))
