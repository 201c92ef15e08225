"""What did the work: versions of Python and of the packages, and the revision of the code. Receipts carry it."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from reasonforge import __version__
from reasonforge.files import sha256_text
from reasonforge.processes import output

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "tokenizers",
    "math-verify",
    "openai",
    "nemo_toolkit",
    "nemo-run",
    "megatron-core",
    "megatron-bridge",
    "transformer-engine",
    "vllm",
    "submitit",
)


@cache
def describe_environment() -> dict[str, Any]:
    """Python, platform, installed versions of the packages that matter, and the code's identity."""
    return {
        "reasonforge": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "code": _code_revision(),
    }


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _code_revision() -> dict[str, str]:
    """The git commit of this source tree, with a hash of the uncommitted changes if there are any."""
    root = Path(__file__).resolve().parents[1]
    commit = output(["git", "rev-parse", "HEAD"], cwd=root) if (root / ".git").exists() else None
    if commit is None:
        return {}
    changes = output(["git", "diff", "HEAD"], cwd=root) or ""
    return {"commit": commit, **({"uncommitted_sha256": sha256_text(changes)} if changes else {})}
