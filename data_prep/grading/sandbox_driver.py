"""Calls functions of a model's program inside the sandbox; `data_prep.grading.code` puts it beside the program.

Standard library only. Standard input is JSON: `calls` (function and arguments) or `checks` (code with asserts) and a
`token` to say in the end. Results go to the real standard output, a JSON line each; what the program prints goes
nowhere.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Load the program, then do what is asked."""
    request = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    with open("main.py", encoding="utf-8") as handle:
        code = compile(handle.read(), "main.py", "exec")
    space: dict[str, Any] = {"__name__": "solution"}
    exec(code, space)  # noqa: S102 - this is what the sandbox is for
    for call in request["calls"]:
        result = _function(space, call["function"])(*call["arguments"])
        results.write(json.dumps(result, allow_nan=True) + "\n")
        results.flush()
    for check in request["checks"]:
        exec(compile(check, "check.py", "exec"), space)  # noqa: S102
    results.write(request["token"] + "\n")
    results.flush()


def _function(space: dict[str, Any], name: str) -> Any:
    """A function of the program, or a method of its class `Solution`."""
    return space[name] if name in space else getattr(space["Solution"](), name)


if __name__ == "__main__":
    main()
