"""Asks chat requests of endpoints: bounded concurrency, retries, and a journal of what was answered.

`ChatEngine.ask` calls it; `data_prep.generation.serving` gives it servers of our own as endpoints.
"""

import asyncio
import resource
from collections.abc import Collection, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.generation.chat import ChatAnswer, ChatRequest, Service, failure
from data_prep.generation.endpoint import Endpoint
from data_prep.generation.journal import Journal
from data_prep.generation.sampling import MakeProgress
from reasonforge.errors import ReasonforgeError, StageError
from reasonforge.progress import Progress

if TYPE_CHECKING:
    from openai import AsyncOpenAI

GIVE_UP_AFTER = 32
"""Requests that fail one after the other, each after all its retries, before the rest is not tried any more."""

WINDOW = 8192
"""Open requests that are put in order by length, the longest first, so that no long one is left for the very end."""

_NOTICED_S = 2.0
"""How long a lost connection waits for the news that the server behind it ended."""
_ENDING_S = 30.0
"""How long a server that gives requests up may take to end."""


class FixedEndpoint(Endpoint):
    """An endpoint that somebody else looks after."""

    def __init__(self, url: str, concurrency: int):
        self.url, self.concurrency = url, concurrency

    async def ready(self) -> tuple[str, "asyncio.Future[None]"]:
        """At once; its end is not known here."""
        return self.url, asyncio.get_running_loop().create_future()

    async def keep(self) -> None:
        """Nothing to do."""

    def answered(self) -> None:
        """Nothing to do."""


def ask_all(
    service: Service,
    requests: Collection[ChatRequest],
    *,
    scratch: Path,
    progress: MakeProgress,
    title: str,
    unit: str,
) -> Iterator[ChatAnswer]:
    """Ask for what the journal in `scratch` lacks; then, with all answered, yield the answers in the requests' order.

    Nothing happens before the first answer is taken. After a kill the same call asks only for what is missing.

    Args:
        requests: iterated several times, each time in the same order.

    Raises RequestError where an endpoint refuses a request (400, 401, 403, 404, …), StageError where some still fail
    after all retries; what was answered stays in the journal.
    """
    with Journal(scratch / "journal.jsonl") as journal:
        with progress(title, len(requests), unit) as counter:
            counter.resume(sum(service.key(request) in journal for request in requests))
            tally = _Tally()
            if counter.done < len(requests):
                _run_apart(_Asking(service, journal, counter, tally).ask(requests))
        if tally.failed:
            raise StageError(
                f"{service.name}: {tally.failed} of {counter.total} {unit} failed after {service.max_retries} "
                f"retries each, the first with: {tally.reason}; the {counter.done} that were answered are kept, "
                "so run the stage again"
            )
        for request in requests:
            entry = journal.read(service.key(request))
            yield ChatAnswer(**{name: entry[name] for name in ChatAnswer.__dataclass_fields__})


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


@dataclass
class _Asking:
    """The work of one call of `ask_all`, inside an event loop."""

    service: Service
    journal: Journal
    counter: Progress
    tally: _Tally
    under_way: set[str] = field(default_factory=set)

    async def ask(self, requests: Iterable[ChatRequest]) -> None:
        """Let the workers of all endpoints take from one queue until it is empty, or too much failed."""
        pending = _longest_first(self._open(requests))
        _allow_files(sum(endpoint.concurrency for endpoint in self.service.endpoints) + 256)
        try:
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                keepers = [group.create_task(endpoint.keep()) for endpoint in self.service.endpoints]
                workers = []
                for endpoint in self.service.endpoints:
                    client = await stack.enter_async_context(self._client(endpoint))
                    for _ in range(min(endpoint.concurrency, self.counter.total - self.counter.done)):
                        workers.append(group.create_task(self._work(endpoint, client, pending)))  # noqa: PERF401
                await asyncio.wait(workers)
                for keeper in keepers:
                    keeper.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    def _client(self, endpoint: Endpoint) -> "AsyncOpenAI":
        from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient

        most = endpoint.concurrency
        limits = type(DEFAULT_CONNECTION_LIMITS)(max_connections=most, max_keepalive_connections=most)
        return AsyncOpenAI(
            api_key=self.service.api_key,
            base_url="http://127.0.0.1",  # each request sets the present one
            timeout=self.service.timeout_s,
            max_retries=self.service.max_retries,
            http_client=DefaultAsyncHttpxClient(limits=limits, trust_env=endpoint.trust_environment),
        )

    def _open(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[str, ChatRequest]]:
        """What is neither answered nor being asked: equal requests have one answer."""
        for request in requests:
            key = self.service.key(request)
            if key in self.under_way:
                self.counter.advance()
            elif key not in self.journal:
                self.under_way.add(key)
                yield key, request

    async def _work(
        self, endpoint: Endpoint, client: "AsyncOpenAI", pending: Iterator[tuple[str, ChatRequest]]
    ) -> None:
        """One of the workers that share `pending`: takes the next request until none is left or too many failed."""
        from openai import OpenAIError

        for key, request in pending:
            try:
                entry = await self._answer(endpoint, client, request)
            except OpenAIError as error:
                told = self.service
                self.tally.fail(failure(error, where=told.name, api_key=told.api_key, timeout_s=told.timeout_s))
            except UnusableError as error:
                self.tally.fail(str(error))
            else:
                self.journal.append(key, {**request.about, **entry})
                self.under_way.discard(key)
                self.tally.in_a_row = 0
                endpoint.answered()
                self.counter.advance()
            if self.tally.in_a_row >= GIVE_UP_AFTER:
                return

    async def _answer(self, endpoint: Endpoint, client: "AsyncOpenAI", request: ChatRequest) -> dict[str, Any]:
        """Ask; where the server ends meanwhile, ask the next one in its place."""
        from openai import APIConnectionError

        body, extra = self.service.body(request), dict(self.service.extra_body) or None
        for _ in range(endpoint.lives):
            client.base_url, ended = await endpoint.ready()
            asked = asyncio.ensure_future(client.chat.completions.create(**body, extra_body=extra))
            try:
                await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
                given_up = asked.done() and not asked.exception() and _is_given_up(asked.result())
                if given_up and endpoint.lives > 1:
                    await asyncio.wait({ended}, timeout=_ENDING_S)
                elif asked.done() and isinstance(asked.exception(), APIConnectionError) and endpoint.lives > 1:
                    await asyncio.wait({ended}, timeout=_NOTICED_S)
                if not given_up and (not ended.done() or (asked.done() and not asked.exception())):
                    return entry_of(asked.result())
            finally:
                asked.cancel()
        raise UnusableError(f"the server ended, or gave the request up, {endpoint.lives} times while it was asked")


class UnusableError(Exception):
    """The endpoint answered with something that is no chat completion, or never came to an answer."""


def _is_given_up(completion: Any) -> bool:
    """Whether it was given up half-way, for all its status of 200: by a vLLM or SGLang that is told to stop ("abort"),
    or by a provider behind OpenRouter that failed ("error")."""
    choices: Any = getattr(completion, "choices", None)
    return bool(choices) and choices[0].finish_reason in ("abort", "error")


def entry_of(completion: Any) -> dict[str, Any]:
    """What the journal keeps of a chat completion. Raises UnusableError where it is none."""
    choices = getattr(completion, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise UnusableError(f"the answer is not a chat completion: {' '.join(str(completion).split())[:200]}")
    message, usage = choices[0].message, completion.usage
    extra = message.model_extra or {}
    thinking = extra.get("reasoning_content") or extra.get("reasoning")
    finish_reason = choices[0].finish_reason or "unknown"
    return {
        "response": whole_response(message.content or "", thinking or "", finish_reason),
        "finish_reason": finish_reason,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
    }


def whole_response(content: str, thinking: str, finish_reason: str) -> str:
    """Thinking and answer as one text.

    Endpoints return the thinking apart (`reasoning_content` of DeepSeek, SGLang and vLLM before 0.16, `reasoning` of
    later ones and of OpenRouter), or in the content, there without its opening tag where the chat template wrote that.
    Thinking that was cut off stays unclosed.
    """
    if thinking:
        cut = finish_reason == "length" and not content
        text = f"<think>\n{thinking.strip()}" + ("" if cut else f"\n</think>\n\n{content.lstrip()}")
    elif "</think>" in content and "<think>" not in content:
        text = f"<think>\n{content.lstrip()}"
    else:
        text = content
    return text.encode("utf-8", "replace").decode()


def _longest_first(requests: Iterator[tuple[str, ChatRequest]]) -> Iterator[tuple[str, ChatRequest]]:
    """Within windows; equal lengths stay together, as the samples of one problem do, whose prompt a server caches."""
    while window := list(islice(requests, WINDOW)):
        yield from sorted(window, key=lambda item: -item[1].length)


def _allow_files(count: int) -> None:
    """Raise this process's limit on open files, as each request under way is one; often it is 1024 and may be more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _first(errors: BaseExceptionGroup) -> BaseException:
    """The error that a user is told; an unexpected one comes before those that are explained."""
    found = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in errors.exceptions]
    return min(found, key=lambda error: isinstance(error, ReasonforgeError))


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run` in a thread of its own. What a signal handler raises comes out of the waiting here, whole, where an
    event loop in this thread might catch it; the work is then cancelled, and has ended when this returns."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None] | None]] = Future()

    async def run() -> None:
        started.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        await work

    with ThreadPoolExecutor(1, "chat") as thread:
        ending = thread.submit(lambda: asyncio.run(run()))
        try:
            ending.result()
        except BaseException:
            loop, task = started.result()
            with suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(task.cancel if task else loop.stop)
            raise
