"""Chat requests to OpenAI-compatible endpoints, what comes back, and how a service is asked.

The engines `openai` and `vllm` describe their services with it, `data_prep.generation.asking` asks them; the judge
takes its key and its errors from here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.generation.endpoint import Endpoint
from data_prep.generation.sampling import Sampling
from reasonforge.errors import RequestError
from reasonforge.files import canonical_json, sha256_text

if TYPE_CHECKING:
    from openai import OpenAIError

NO_KEY = "none"
"""What is sent where an endpoint wants no key: the client sends something always."""

_BUSY = (408, 409, 429)
"""Refusals that pass, as do all from 500 on."""


@dataclass(frozen=True)
class ChatRequest:
    """One question, with what decides its answer."""

    messages: Sequence[Mapping[str, str]]
    """`{"role": ..., "content": ...}`, in order."""
    sampling: Sampling
    """Temperature, top_p and max_tokens; `samples` is not read."""
    seed: int
    """Sent where the engine sends seeds; part of the request's identity in any case."""
    sample: int = 0
    """Tells requests apart that are equal otherwise: each gets an answer of its own."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the journal notes beside the answer, for people; it decides nothing."""

    @property
    def length(self) -> int:
        """Characters of all messages."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class ChatAnswer:
    """What came back for one request."""

    response: str
    """Thinking and answer as one text, the thinking between `<think>` and `</think>`."""
    finish_reason: str
    """As the endpoint says: "stop", "length", …"""
    prompt_tokens: int | None
    """As the endpoint counts; None where it does not, as in `completion_tokens`."""
    completion_tokens: int | None


@dataclass(frozen=True)
class Service:
    """Endpoints that all answer alike, and how they are asked."""

    name: str
    """For errors: the URL or the engine."""
    model: str
    """The model's name, as the endpoints know it."""
    identity: Any
    """What beside the request decides the answer, as JSON: never a port, for a server may move."""
    endpoints: Sequence[Endpoint]
    """All take from one queue."""
    api_key: str
    """Sent with every request, and never shown."""
    extra_body: Mapping[str, Any]
    """Further fields of every request."""
    max_tokens_field: str
    """The field that carries the token limit."""
    send_seed: bool
    """Whether requests carry their seed."""
    timeout_s: float
    """Seconds for one try."""
    max_retries: int
    """Further tries of a request, by the openai package's own rule."""

    def key(self, request: ChatRequest) -> str:
        """The hash of all that decides the answer: the journal's key."""
        sampling = [request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens]
        messages = [dict(message) for message in request.messages]
        sent = [dict(self.extra_body), self.send_seed]
        return sha256_text(canonical_json([self.identity, sent, messages, sampling, request.seed, request.sample]))

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """What is sent, without the extra fields."""
        return {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            self.max_tokens_field: request.sampling.max_tokens,
            **({"seed": request.seed} if self.send_seed else {}),
        }


def read_key(variable: str | None, where: str) -> str:
    """The API key that an environment variable holds; NO_KEY where no variable is named.

    Args:
        where: the endpoint, for the RequestError where the variable is not set.
    """
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RequestError(
            f"environment variable {variable}",
            f"not set, but the key for {where} is read from it",
            f"export {variable}=… before the run",
        )
    return key


def failure(error: "OpenAIError", *, where: str, api_key: str, timeout_s: float) -> str:
    """Why a request failed for good, in one line without the key. Raises RequestError where no retry would help."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    shown = str(error) if api_key == NO_KEY else str(error).replace(api_key, "***")
    text = " ".join(shown.split())
    text = text if len(text) <= 300 else text[:297] + "..."
    if isinstance(error, APITimeoutError):
        return f"no answer within timeout_s, {timeout_s:g} s"
    if isinstance(error, APIConnectionError):
        return f"{text} {' '.join(str(error.__cause__ or '').split())}".strip()
    if isinstance(error, APIStatusError) and (error.status_code in _BUSY or error.status_code >= 500):
        return text
    raise RequestError(where, f"refused the request: {text}", "check the key, the model and the options")
