"""Traces from any OpenAI-compatible endpoint that somebody else runs.

The `generate` stage calls it as its engine of type `openai`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data_prep.generation.chat import Service, read_key
from data_prep.generation.chat_engine import ChatEngine
from reasonforge.config import Operational


class OpenAIEngine(ChatEngine):
    """An endpoint with `/chat/completions`: a hosted API, vLLM, SGLang, `transformers serve`."""

    type: Literal["openai"] = "openai"
    base_url: str
    """The endpoint, up to and with its version ("http://127.0.0.1:8000/v1")."""
    model: str
    """The model's name, as the endpoint knows it."""
    api_key_env: Annotated[str | None, Operational()] = None
    """Name of the environment variable that holds the key; none is sent where this is null."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that carries the token limit; OpenAI's reasoning models take only `max_completion_tokens`."""
    concurrency: Annotated[int, Field(ge=1), Operational()] = 32
    """Requests under way at once."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The client."""
        return ("openai",)

    def teacher(self, model: Path | None = None) -> str:
        """The model's name, as the endpoint knows it."""
        return self.model

    def service(self, *, scratch: Path, seed: int, model: Path | None) -> Service:
        """The endpoint. Raises RequestError where the key is not set."""
        from data_prep.generation.asking import FixedEndpoint

        return Service(
            name=self.base_url,
            model=self.model,
            identity=[self.base_url, self.model, self.max_tokens_field],
            endpoints=[FixedEndpoint(self.base_url, self.concurrency)],
            api_key=read_key(self.api_key_env, self.base_url),
            extra_body=self.extra_body,
            max_tokens_field=self.max_tokens_field,
            send_seed=self.send_seed,
            timeout_s=self.timeout_s,
            max_retries=self.max_retries,
        )
