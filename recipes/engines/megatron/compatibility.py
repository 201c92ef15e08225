"""Which versions of NeMo, Megatron-Bridge, Megatron-core and Transformer Engine go together, and which container has
which.

`training` calls `check_installed` when a stage starts; slurm's preflight calls `check_image` where the site's image
says its tag. What does not fit is refused by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from reasonforge.errors import RequestError
from recipes.engines.megatron.options import MegatronEngine

Version = tuple[int, int]
"""Major and minor."""


@dataclass(frozen=True)
class Framework:
    """What an engine trains with: from which versions on it fits, and below which."""

    package: str
    absent: str
    """What is to be said where it is not there."""
    first: Version
    below: Version
    first_core: Version
    below_core: Version
    why_core: str
    """What comes in between with another megatron-core."""
    needs_transformer_engine: bool
    """Also with megatron-core's own layers."""
    made_by: str
    """What makes an environment where there is no container."""


FRAMEWORKS: dict[str, Framework] = {
    "nemo": Framework(
        package="nemo_toolkit",
        absent="there is no nemo_toolkit with language models in it, which is in its versions below 3.0 only",
        first=(2, 5),
        below=(2, 8),
        first_core=(0, 14),
        below_core=(0, 16),
        why_core="which has no `no_weight_decay_cond` in get_megatron_optimizer any more",
        needs_transformer_engine=False,
        made_by="`make nemo-env`",
    ),
    "megatron_bridge": Framework(
        package="megatron-bridge",
        absent="there is no megatron-bridge",
        first=(0, 3),
        below=(0, 4),
        first_core=(0, 15),
        below_core=(0, 17),
        why_core="whose own configuration classes take the place of Bridge's",
        needs_transformer_engine=True,
        made_by="`make bridge-env`",
    ),
}
"""By the engine's type. nemo_toolkit 2.7.3 with megatron-core 0.15.3 and megatron-bridge 0.3.1 with 0.16.1 are tested.
Bridge has callbacks from 0.3 on; it imports Transformer Engine unconditionally (peft/lora_layers.py); 0.4 has taken
megatron-core's classes of configuration, which that has since 0.17."""

FP8_NEEDS: dict[str, Version] = {
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

    def of(self, engine: MegatronEngine) -> str | None:
        """That of the engine's framework."""
        return {"nemo": self.nemo, "megatron_bridge": self.bridge}[engine.type]


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


def check_image(image: str, engine: MegatronEngine) -> RequestError | None:
    """What is wrong with an image, as far as its name tells; None where nothing is, or nothing can be known."""
    tag = container_tag(image)
    if tag is None or tag not in CONTAINERS:
        return None
    problem = next(problems(CONTAINERS[tag], engine), None)
    if problem is None:
        return None
    return RequestError(f"image {image}", problem, f"tags that fit: {', '.join(fitting_tags(engine))}")


def fitting_tags(engine: MegatronEngine) -> list[str]:
    """The containers that have what an engine with these options needs, the oldest first."""
    return [tag for tag, found in CONTAINERS.items() if next(problems(found, engine), None) is None]


def installed() -> Versions:
    """The versions of this process's own environment."""
    return Versions(**{name: _version(packages) for name, packages in _PACKAGES.items()})


def check_installed(engine: MegatronEngine, found: Versions | None = None) -> Versions:
    """The versions of this environment. Raises RequestError where they do not go together, or not with the options."""
    found = found or installed()
    problem = next(problems(found, engine), None)
    if problem is not None:
        made_by = FRAMEWORKS[engine.type].made_by
        raise RequestError(
            f"engine {engine.type}", problem, f"take a container that fits ({fitting_tags(engine)[-1]}), or {made_by}"
        )
    return found


def problems(found: Versions, engine: MegatronEngine) -> Iterator[str]:
    """All that does not fit, a line each."""
    framework, version = FRAMEWORKS[engine.type], found.of(engine)
    if version is None:
        yield framework.absent
        return
    if not framework.first <= _number(version) < framework.below:
        yield (
            f"{framework.package} is {version}, but this engine is for {_text(framework.first)} and later, "
            f"below {_text(framework.below)}"
        )
    if found.core is None:
        yield "there is no megatron-core"
    elif not framework.first_core <= _number(found.core) < framework.below_core:
        yield (
            f"{framework.package} {version} cannot train with megatron-core {found.core}: it needs "
            f"{_text(framework.first_core)} or later, below {_text(framework.below_core)}, {framework.why_core}"
        )
    if engine.layer_spec == "local" and not framework.needs_transformer_engine:
        if engine.distributed_optimizer and found.transformer_engine is None:
            yield (
                "distributed_optimizer is true, but there is no Transformer Engine, and of torch's own Adam "
                "megatron-core's distributed optimizer cannot save the state; set distributed_optimizer: false"
            )
        return
    if found.transformer_engine is None:
        whose = "layer_spec is te" if engine.layer_spec == "te" else f"{framework.package} imports Transformer Engine"
        yield f"{whose}, but there is no Transformer Engine"
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


def _number(version: str) -> Version:
    """Major and minor version."""
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)


def _text(version: Version) -> str:
    return ".".join(map(str, version))
