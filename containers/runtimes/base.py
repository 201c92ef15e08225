"""What the runtimes share: the result, mounts as they are written in a site, and the checks of what cannot be said.

Each runtime's `wrap` is a pure function; every part of a value arrives as it is, or is refused with RequestError.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from reasonforge.errors import RequestError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE_BREAKS = re.compile(r"[\n\r\0]")


@dataclass(frozen=True)
class Wrapped:
    """A command as it is to be started: `srun *srun_arguments *command`, or `command` alone where nothing is in the
    first, with `environment` added to that of the starting process. Argument lists: nothing is quoted yet."""

    command: tuple[str, ...]
    srun_arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mount:
    """A directory of the host as a container sees it; both paths are absolute."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro. Raises RequestError for anything else."""
        source, *more = text.split(":")
        target = more[0] if more else source
        if len(more) > 2 or more[1:] not in ([], ["ro"], ["rw"]):
            raise RequestError(
                f"mount {text!r}", "has a part that is not ro or rw", "SOURCE:TARGET:ro, without other ':'"
            )
        for path in (source, target):
            if not path.startswith("/"):
                raise RequestError(f"mount {text!r}", f"{path!r} is not absolute", "/SOURCE:/TARGET; a path has no ':'")
            refuse_line_breaks(f"mount {text!r}", path)
        return cls(source, target, more[1:] == ["ro"])


def parse_mounts(texts: Iterable[str]) -> list[Mount]:
    """Read mounts; one given twice is kept once. Raises RequestError where two have the same target."""
    found: dict[str, Mount] = {}
    for mount in map(Mount.parse, texts):
        if found.setdefault(mount.target, mount) != mount:
            other = found[mount.target].source
            raise RequestError(
                f"mount {mount.target}", f"is {mount.source!r} and {other!r}", "mount one of them elsewhere"
            )
    return list(found.values())


def refuse_characters(mount: Mount, characters: str, runtime: str) -> None:
    """RequestError where a path has one of the characters that this runtime gives a meaning of their own."""
    for path in (mount.source, mount.target):
        if bad := sorted(set(path) & set(characters)):
            raise RequestError(
                f"mount {path!r}", f"{runtime} cannot mount a path with {bad[0]!r}", "give it another name"
            )


def refuse_line_breaks(where: str, value: str) -> None:
    """RequestError where a value has a line break or a null byte."""
    if _LINE_BREAKS.search(value):
        raise RequestError(where, f"{value[:60]!r} has a line break or a null byte", "one line of text")


def check_names(names: Iterable[str]) -> None:
    """RequestError where a name is none that a shell knows."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"environment {name!r}", "is no name of a variable", "letters, digits and _, no digit first"
            )


def check_environment(environment: Mapping[str, str]) -> None:
    """RequestError where a name is none that a shell knows, or where a value has more than one line."""
    check_names(environment)
    for name, value in environment.items():
        refuse_line_breaks(f"environment {name}", value)


def need_image(image: str | None, runtime: str) -> str:
    """The image. RequestError where there is none, or where it would be taken for an option."""
    if not image:
        raise RequestError(f"runtime {runtime}", "needs an image and there is none", "set `image` in the site")
    refuse_line_breaks("image", image)
    if image.startswith("-"):
        raise RequestError(f"image {image!r}", "would be taken for an option", "the path or the name of an image")
    return image


def need_absolute(workdir: str) -> str:
    """The directory to start in. RequestError where it is not absolute."""
    refuse_line_breaks("workdir", workdir)
    if not workdir.startswith("/"):
        raise RequestError(f"workdir {workdir!r}", "is not absolute", "the full path in the container")
    return workdir


def started_in(workdir: str, command: Sequence[str]) -> tuple[str, ...]:
    """A command that first goes to a directory; no part of it is read by the shell as its language."""
    return ("sh", "-c", 'cd -- "$0" && exec "$@"', workdir, *command)
