"""Traces from any OpenAI-compatible endpoint: bounded concurrency, retries, and a journal of what was answered.

The `generate` stage calls it as its engine of type `openai`.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.generation.journal import Journal
from data_prep.generation.sampling import MakeProgress, Row, Sampling, publish_traces, sample_seed, trace_row
from reasonforge.config import Operational, Strict
from reasonforge.errors import RequestError, StageError
from reasonforge.files import canonical_json, sha256_text
from reasonforge.progress import Progress

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

GIVE_UP_AFTER = 32
"""Samples that fail one after the other, each after all its retries, before the rest is not tried any more."""


class OpenAIEngine(Strict):
    """An endpoint with `/chat/completions`: a hosted API, vLLM, SGLang, `transformers serve`."""

    type: Literal["openai"] = "openai"
    base_url: str
    """The endpoint, up to and with its version ("http://127.0.0.1:8000/v1")."""
    model: str
    """The model's name, as the endpoint knows it."""
    api_key_env: Annotated[str | None, Operational()] = None
    """Name of the environment variable that holds the key; none is sent where this is null."""
    system_prompt: str | None = None
    """A message of role `system` before each problem."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request (`top_k: 20`, `chat_template_kwargs: {enable_thinking: true}`)."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that carries the token limit; OpenAI's reasoning models take only `max_completion_tokens`."""
    send_seed: bool = True
    """Send each sample's own `seed`; false for an endpoint that refuses the field."""
    concurrency: Annotated[int, Field(ge=1), Operational()] = 32
    """Requests under way at once."""
    timeout_s: Annotated[float, Field(gt=0), Operational()] = 3600.0
    """Seconds for one try of a request; long thinking takes long."""
    max_retries: Annotated[int, Field(ge=0), Operational()] = 8
    """Further tries on 408, 409, 429, 5xx, a lost connection or a timeout: after 0.5 s, doubling up to 8 s, with
    jitter, or as `Retry-After` says (the openai package's own rule)."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The client."""
        return ("openai",)

    def block(self, sampling: Sampling) -> int:
        """Problems that have to stay together when the work is divided: each stands alone."""
        return 1

    def generate(
        self,
        problems: Sequence[Row],
        sampling: Sampling,
        *,
        destination: Path,
        scratch: Path,
        seed: int,
        progress: MakeProgress,
        model: Path | None = None,
        first: int = 0,
    ) -> dict[str, Any]:
        """Ask for every sample that the journal in `scratch` lacks, then write all traces in order.

        Raises RequestError where the key is not set or the endpoint refuses a request (400, 401, 403, 404, …),
        StageError where samples still fail after all retries; what was answered stays in the journal.
        """
        import asyncio

        api_key = self._api_key()
        with Journal(scratch / "journal.jsonl") as journal:
            with progress("sampling", len(problems) * sampling.samples, "samples") as counter:
                counter.resume(sum(request.key in journal for request in self._requests(problems, sampling, seed)))
                pending = (
                    request for request in self._requests(problems, sampling, seed) if request.key not in journal
                )
                tally = _Tally()
                asyncio.run(self._sample_all(pending, api_key, journal, counter, tally))
            if tally.failed:
                raise StageError(
                    f"{self.base_url}: {tally.failed} of {counter.total} samples failed after {self.max_retries} "
                    f"retries each, the first with: {tally.reason}; the {counter.done} that were answered are kept, "
                    "so run the stage again"
                )
            rows = (_trace(request, journal, self.model) for request in self._requests(problems, sampling, seed))
            return publish_traces(rows, destination)

    def _api_key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RequestError(
                f"environment variable {self.api_key_env}",
                f"not set, but the key for {self.base_url} is read from it",
                f"export {self.api_key_env}=… before the run",
            )
        return key

    def _requests(self, problems: Sequence[Row], sampling: Sampling, seed: int) -> Iterator["_Request"]:
        """Every request of the job, in the order of the traces."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        for problem in problems:
            for sample in range(sampling.samples):
                own_seed = sample_seed(seed, problem["id"], sample)
                body = {
                    "model": self.model,
                    "messages": [*system, {"role": "user", "content": problem["prompt"]}],
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    self.max_tokens_field: sampling.max_tokens,
                    **({"seed": own_seed} if self.send_seed else {}),
                }
                identity = [self.base_url, body, self.extra_body, sample, own_seed]
                yield _Request(problem, sample, body, sha256_text(canonical_json(identity)))

    async def _sample_all(
        self, pending: Iterator["_Request"], api_key: str, journal: Journal, counter: Progress, tally: "_Tally"
    ) -> None:
        import asyncio

        from openai import AsyncOpenAI

        async with AsyncOpenAI(
            api_key=api_key, base_url=self.base_url, timeout=self.timeout_s, max_retries=self.max_retries
        ) as client:
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(self.concurrency, counter.total - counter.done)):
                        workers.create_task(self._work(client, pending, journal, counter, tally))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    async def _work(
        self,
        client: "AsyncOpenAI",
        pending: Iterator["_Request"],
        journal: Journal,
        counter: Progress,
        tally: "_Tally",
    ) -> None:
        """One of the workers that share `pending`: takes the next request until none is left or too many failed."""
        from openai import OpenAIError

        for request in pending:
            try:
                completion = await client.chat.completions.create(**request.body, extra_body=self.extra_body or None)
                entry = _entry(completion)
            except OpenAIError as error:
                tally.fail(self._give_up(error, client.api_key))
            except _UnusableError as error:
                tally.fail(str(error))
            else:
                journal.append(request.key, {"problem_id": request.problem["id"], "sample": request.sample, **entry})
                tally.in_a_row = 0
                counter.advance()
            if tally.in_a_row >= GIVE_UP_AFTER:
                return

    def _give_up(self, error: "OpenAIError", api_key: str) -> str:
        """The reason why a sample failed for good, in one line. Raises RequestError where no retry would help."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        text = " ".join(str(error).replace(api_key, "***").split())
        text = text if len(text) <= 300 else text[:297] + "..."
        if isinstance(error, APITimeoutError):
            return f"no answer within timeout_s, {self.timeout_s:g} s"
        if isinstance(error, APIConnectionError):
            cause = " ".join(str(error.__cause__ or "").split())
            return f"{text} {cause}".strip()
        if isinstance(error, APIStatusError) and (error.status_code in (408, 409, 429) or error.status_code >= 500):
            return text
        raise RequestError(self.base_url, f"refused the request: {text}", "check the key, the model and the options")


@dataclass(frozen=True)
class _Request:
    """One sample: what is sent, and the hash of all that decides the answer."""

    problem: Row
    sample: int
    body: dict[str, Any]
    key: str


@dataclass
class _Tally:
    """What failed for good."""

    failed: int = 0
    in_a_row: int = 0
    reason: str = ""

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.in_a_row += 1
        self.reason = self.reason or reason


class _UnusableError(Exception):
    """The endpoint answered 200 with something that is no chat completion."""


def _entry(completion: Any) -> dict[str, Any]:
    """What the journal keeps of a chat completion. Raises _UnusableError where it is none."""
    choices = getattr(completion, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise _UnusableError(f"the answer is not a chat completion: {' '.join(str(completion).split())[:200]}")
    message, usage = choices[0].message, completion.usage
    extra = message.model_extra or {}
    thinking = extra.get("reasoning_content") or extra.get("reasoning")
    finish_reason = choices[0].finish_reason or "unknown"
    return {
        "response": _response(message.content or "", thinking or "", finish_reason),
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
    }


def _response(content: str, thinking: str, finish_reason: str) -> str:
    """Thinking and answer as one text.

    Endpoints return the thinking apart (vLLM's and DeepSeek's `reasoning_content`), or in the content, there without
    its opening tag where the chat template wrote that. Thinking that was cut off stays unclosed.
    """
    if thinking:
        cut = finish_reason == "length" and not content
        text = f"<think>\n{thinking.strip()}" + ("" if cut else f"\n</think>\n\n{content.lstrip()}")
    elif "</think>" in content and "<think>" not in content:
        text = f"<think>\n{content.lstrip()}"
    else:
        text = content
    return text.encode("utf-8", "replace").decode()


def _trace(request: _Request, journal: Journal, model: str) -> Row:
    entry = journal.read(request.key)
    return trace_row(
        request.problem,
        request.sample,
        entry["response"],
        teacher=model,
        finish_reason=entry["finish_reason"],
        prompt_tokens=entry["prompt_tokens"],
        completion_tokens=entry["completion_tokens"],
    )
