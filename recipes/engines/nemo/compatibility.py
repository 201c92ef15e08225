"""Which versions of NeMo, Megatron-core and Transformer Engine go together, and which container has which.

`training` calls `check_installed` when a stage starts; slurm's preflight calls `check_image` where the site's image
says its tag. What does not fit is refused by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from reasonforge.errors import RequestError
from recipes.engines.nemo.options import NeMoEngine

FIRST, LAST = (2, 5), (2, 8)
"""From which version of nemo_toolkit on, and below which, this engine's keys exist. 2.7.3 is the one that is tested;
from 3.0 on NeMo has no language models any more."""

OLDEST_CORE, REMOVED_IN = (0, 14), (0, 16)
"""NeMo 2 calls megatron-core's get_megatron_optimizer with `no_weight_decay_cond`, which 0.16 has not any more."""

FP8_NEEDS: dict[str, tuple[int, int]] = {
    "fp8-delayed": (1, 0),
    "fp8-current": (2, 2),
    "fp8-blockwise": (2, 3),
    "mxfp8": (2, 1),
}
"""The Transformer Engine that each FP8 recipe needs (megatron-core 0.15, fp8_utils.get_fp8_recipe)."""


@dataclass(frozen=True)
class Versions:
    """What an environment has; None for what it has not."""

    nemo: str | None
    core: str | None
    transformer_engine: str | None
    bridge: str | None = None
    nemo_run: str | None = None


CONTAINERS: dict[str, Versions] = {
    "25.09": Versions("2.5.0", "0.14.0", "2.7", "0.1.0rc3", "0.6.0"),
    "25.11": Versions("2.6.0", "0.15.0", "2.9", "0.2.0", "0.7.0"),
    "26.02": Versions("2.7.0", "0.16.0", "2.12", "0.3.0", "0.8.0"),
    "26.04": Versions(None, "0.17.0", "2.14", "0.4.0", "0.9.0"),
    "26.06": Versions(None, "0.18.0", "2.16", "0.5.0", "0.10.0"),
}
"""nvcr.io/nvidia/nemo by tag, as NVIDIA's release notes have it."""

_TAG = re.compile(r"(?<![A-Za-z])nemo[:+_-](\d\d\.\d\d)(?!\d)")
_PACKAGES = {
    "nemo": ("nemo-toolkit",),
    "core": ("megatron-core",),
    "transformer_engine": ("transformer-engine", "transformer-engine-torch"),
    "bridge": ("megatron-bridge",),
    "nemo_run": ("nemo-run",),
}


def container_tag(image: str) -> str | None:
    """The tag of NVIDIA's NeMo container in an image's name or file (`nvcr.io/nvidia/nemo:25.11`,
    `nvidia+nemo+25.11.sqsh`); None of another image, or one whose name does not tell."""
    found = _TAG.search(image)
    return found[1] if found else None


def check_image(image: str, engine: NeMoEngine) -> RequestError | None:
    """What is wrong with an image, as far as its name tells; None where nothing is, or nothing can be known."""
    tag = container_tag(image)
    if tag is None or tag not in CONTAINERS:
        return None
    problem = next(problems(CONTAINERS[tag], engine), None)
    if problem is None:
        return None
    fitting = [name for name, found in CONTAINERS.items() if next(problems(found, engine), None) is None]
    return RequestError(f"image {image}", problem, f"tags that fit: {', '.join(fitting)}")


def installed() -> Versions:
    """The versions of this process's own environment."""
    return Versions(**{name: _version(packages) for name, packages in _PACKAGES.items()})


def check_installed(engine: NeMoEngine, found: Versions | None = None) -> Versions:
    """The versions of this environment. Raises RequestError where they do not go together, or not with the options."""
    found = found or installed()
    problem = next(problems(found, engine), None)
    if problem is not None:
        raise RequestError("engine nemo", problem, "take a container that fits (25.11), or `make nemo-env`")
    return found


def problems(found: Versions, engine: NeMoEngine) -> Iterator[str]:
    """All that does not fit, a line each."""
    if found.nemo is None:
        yield "there is no nemo_toolkit with language models in it, which is in its versions below 3.0 only"
        return
    if not FIRST <= _number(found.nemo) < LAST:
        yield f"nemo_toolkit is {found.nemo}, but this engine is for {_text(FIRST)} and later, below {_text(LAST)}"
    if found.core is None:
        yield "there is no megatron-core"
    elif not OLDEST_CORE <= _number(found.core) < REMOVED_IN:
        yield (
            f"nemo_toolkit {found.nemo} cannot train with megatron-core {found.core}: it needs {_text(OLDEST_CORE)} or "
            f"later, below {_text(REMOVED_IN)}, which has no `no_weight_decay_cond` in get_megatron_optimizer any more"
        )
    if engine.layer_spec == "local":
        return
    if found.transformer_engine is None:
        yield "layer_spec is te, but there is no Transformer Engine"
        return
    least = FP8_NEEDS.get(engine.precision.type)
    if least is not None and _number(found.transformer_engine) < least:
        yield (
            f"precision.type {engine.precision.type} needs Transformer Engine {_text(least)} or later, "
            f"but there is {found.transformer_engine}"
        )


def _version(packages: tuple[str, ...]) -> str | None:
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _number(version: str) -> tuple[int, int]:
    """Major and minor version."""
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
