"""What holds for the whole house: importing is light, so the command line answers at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "numpy", "pyarrow", "trl", "datasets", "math_verify", "sympy", "openai", "matplotlib",
         "jinja2", "rich.table", "asyncio")  # fmt: skip
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("reasonforge", "recipes", "data_prep", "containers", "slurm", "checkpoints_conversion")
    for path in (ROOT / room).rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def loaded(*modules: str) -> set[str]:
    script = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_anything_is_light() -> None:
    assert len(MODULES) > 40
    found = loaded(*MODULES)
    assert set(MODULES) <= found
    assert not found & (set(HEAVY) - {"rich.table", "asyncio"})


@pytest.mark.parametrize("module", ["reasonforge.cli", "recipes.recipe"])
def test_the_command_line_is_lighter_still(module: str) -> None:
    found = loaded(module)
    assert not found & set(HEAVY)
    assert module == "recipes.recipe" or "pydantic" not in found, "--help needs no types"
