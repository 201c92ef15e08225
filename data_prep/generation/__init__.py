"""Generation of traces: engines behind one union, each sampling answers to problems resumably.

The `generate` and `evaluate` stages of recipes use it; `engine.generate(...)` also stands alone as a library call, and
`engine.ask(...)` of the engines `openai` and `vllm` takes any chat requests.
"""

from typing import Annotated

from pydantic import Field

from data_prep.generation.chat import ChatAnswer, ChatRequest
from data_prep.generation.chat_engine import ChatEngine
from data_prep.generation.engine import TraceEngine, Work
from data_prep.generation.hf import HFEngine
from data_prep.generation.openai_api import OpenAIEngine
from data_prep.generation.programmatic import ProgrammaticTeacher
from data_prep.generation.sampling import Sampling
from data_prep.generation.several import SeveralEngines
from data_prep.generation.vllm import VLLMEngine

Engine = Annotated[
    ProgrammaticTeacher | OpenAIEngine | HFEngine | VLLMEngine | SeveralEngines, Field(discriminator="type")
]

__all__ = [
    "ChatAnswer",
    "ChatEngine",
    "ChatRequest",
    "Engine",
    "HFEngine",
    "OpenAIEngine",
    "ProgrammaticTeacher",
    "Sampling",
    "SeveralEngines",
    "TraceEngine",
    "VLLMEngine",
    "Work",
]
