"""Generation of traces: three engines behind one union, each sampling answers to problems resumably.

The `generate` and `evaluate` stages of recipes use it; `engine.generate(...)` also stands alone as a library call.
"""

from typing import Annotated

from pydantic import Field

from data_prep.generation.hf import HFEngine
from data_prep.generation.openai_api import OpenAIEngine
from data_prep.generation.programmatic import ProgrammaticTeacher
from data_prep.generation.sampling import Sampling

Engine = Annotated[ProgrammaticTeacher | OpenAIEngine | HFEngine, Field(discriminator="type")]

__all__ = ["Engine", "HFEngine", "OpenAIEngine", "ProgrammaticTeacher", "Sampling"]
