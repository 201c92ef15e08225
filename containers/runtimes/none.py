"""No container: the command runs as it is, with the programs of the host."""

from collections.abc import Mapping, Sequence
from typing import Literal

from containers.runtimes.base import Wrapped, check_names
from reasonforge.config import Strict
from reasonforge.errors import RequestError


class NoRuntime(Strict):
    """The host's own environment."""

    type: Literal["none"] = "none"
    """Which runtime this is."""

    def wrap(
        self,
        command: Sequence[str],
        image: str | None,
        mounts: Sequence[str],
        environment: Mapping[str, str],
        workdir: str,
        inherit: Sequence[str] = (),
    ) -> Wrapped:
        """The command as it is: mounts mean nothing here, and it starts where the step does, `workdir` or not.

        Raises RequestError where an image is given.
        """
        refuse_image(image, self.type)
        check_names(environment)
        return Wrapped(tuple(command), environment=dict(environment))


def refuse_image(image: str | None, runtime: str) -> None:
    """RequestError where an image is given to a runtime that has none."""
    if image is not None:
        raise RequestError(
            f"image {image!r}", f"the runtime {runtime} uses none", "leave it out, or choose pyxis, enroot or apptainer"
        )
