"""Which Python runs a stage on this machine: NeMo and Megatron-Bridge live in environments of their own.

The local launcher and `reasonforge doctor` ask here. On a cluster the site's image or runtime decides instead.
"""

import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from reasonforge.processes import output
from recipes.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
"""Where our packages lie: a source tree, or site-packages."""

_FIND = """
import json, sys
from importlib.util import find_spec
def lacks(module):
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:  # of the package that it is in
        return True
print(json.dumps([module for module in sys.argv[1:] if lacks(module)]))
"""


def interpreter(environment: str | None, variables: Mapping[str, str] = os.environ) -> str:
    """The Python of an environment, by its name ("nemo", "bridge"): REASONFORGE_NEMO_PYTHON names it, else it is that
    of .venv-nemo in the source tree, which `make nemo-env` makes; without either, and for None, the Python that
    runs now."""
    if environment is None:
        return sys.executable
    made = ROOT / f".venv-{environment}" / "bin" / "python"
    return variables.get(f"REASONFORGE_{environment.upper()}_PYTHON") or (
        str(made) if made.exists() else sys.executable
    )


def variables_for(stage: Stage, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment variables of a stage's process: another Python has to find the source tree.

    An installed package is not put into its path, for all that is installed beside it would come with it: there,
    reasonforge has to be installed in that environment too.
    """
    if interpreter(stage.environment, variables) == sys.executable or not (ROOT / "pyproject.toml").exists():
        return dict(variables)
    path = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
    return {**variables, "PYTHONPATH": path}


def missing(stage: Stage) -> list[str]:
    """The modules that a stage's work needs and its Python cannot find; all of them where it does not start."""
    python = interpreter(stage.environment)
    needed = tuple(dict.fromkeys(stage.needs))
    if python != sys.executable:
        needed = ("reasonforge", *needed)
    return _missing(python, needed, variables_for(stage).get("PYTHONPATH", ""))


@cache
def _missing(python: str, modules: tuple[str, ...], path: str) -> list[str]:
    if python == sys.executable:
        return [module for module in modules if _lacks(module)]
    found = output([python, "-c", _FIND, *modules], environment={**os.environ, "PYTHONPATH": path}, timeout_s=60)
    return list(modules) if found is None else list(json.loads(found))


def _lacks(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:
        return True
