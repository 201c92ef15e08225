"""What the engines `openai` and `vllm` have in common: their options for requests, and sampling by chat requests.

`data_prep.rewriting` asks for its own requests with `ChatEngine.ask`.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data_prep.generation.chat import ChatAnswer, ChatRequest, Service
from data_prep.generation.engine import TraceEngine, Work
from data_prep.generation.sampling import MakeProgress, Row, Sampling, sample_seed, trace_row
from reasonforge.config import Operational


class ChatEngine(TraceEngine):
    """An engine that answers chat requests; which type it is, and where it runs, its subclasses say."""

    licence: str | None = None
    """The model's, for the dataset card: an SPDX identifier ("apache-2.0"), as the Hub has it."""
    system_prompt: str | None = None
    """A message of role `system` before each problem."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request (`top_k: 20`)."""
    send_seed: bool = True
    """Send each sample's own `seed`; false for an endpoint that refuses the field."""
    timeout_s: Annotated[float, Field(gt=0), Operational()] = 3600.0
    """Seconds for one try of a request; long thinking takes long."""
    max_retries: Annotated[int, Field(ge=0), Operational()] = 8
    """Further tries on 408, 409, 429, 5xx, a lost connection or a timeout: after 0.5 s, doubling up to 8 s, with
    jitter, or as `Retry-After` says (the openai package's own rule)."""

    @abstractmethod
    def service(self, *, scratch: Path, seed: int, model: Path | None) -> Service:
        """Where and how requests are asked.

        Args:
            scratch: where servers of our own may write.
            seed: of the run.
            model: the directory of a model that comes before the engine's own.
        """

    @abstractmethod
    def teacher(self, model: Path | None) -> str:
        """The model's name in the traces."""

    def ask(
        self,
        requests: Collection[ChatRequest],
        *,
        scratch: Path,
        progress: MakeProgress,
        title: str = "asking",
        unit: str = "requests",
        seed: int = 0,
        model: Path | None = None,
    ) -> Iterator[ChatAnswer]:
        """The answers to any chat requests, in their order; all are asked before the first is given out.

        What was answered stays in the journal in `scratch`, so that the same call after a kill asks only for the rest;
        `system_prompt` is for problems and is not added here. Servers of our own run only while requests are asked.

        Args:
            requests: a list, or another collection that can be iterated again with the same outcome.
            seed: of servers of our own; each request has its own beside.

        Raises RequestError where a request is refused or a key is missing, StageError where requests still fail after
        all retries, or a server cannot be kept running.
        """
        from data_prep.generation.asking import ask_all

        service = self.service(scratch=scratch, seed=seed, model=model)
        return ask_all(service, requests, scratch=scratch, progress=progress, title=title, unit=unit)

    def rows(self, work: Work) -> Iterator[Row]:
        """Ask for every sample that the journal in `scratch` lacks, then all traces in order. Raises as `ask`."""
        requests = _Samples(work.problems, work.sampling, work.seed, self.system_prompt)
        answers = self.ask(
            requests,
            scratch=work.scratch,
            progress=work.progress,
            title="sampling",
            unit="samples",
            seed=work.seed,
            model=work.model,
        )
        teacher = self.teacher(work.model)
        for (problem, sample), answer in zip(requests.pairs(), answers, strict=True):
            yield trace_row(problem, sample, teacher=teacher, **vars(answer))


@dataclass(frozen=True)
class _Samples(Collection[ChatRequest]):
    """A request for every problem and sample, made anew each time they are iterated."""

    problems: Sequence[Row]
    sampling: Sampling
    seed: int
    system_prompt: str | None

    def pairs(self) -> Iterator[tuple[Row, int]]:
        """Every problem with each number of a sample, in the order of the traces."""
        return ((problem, sample) for problem in self.problems for sample in range(self.sampling.samples))

    def __len__(self) -> int:
        return len(self.problems) * self.sampling.samples

    def __iter__(self) -> Iterator[ChatRequest]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        for problem, sample in self.pairs():
            yield ChatRequest(
                messages=[*system, {"role": "user", "content": problem["prompt"]}],
                sampling=self.sampling,
                seed=sample_seed(self.seed, problem["id"], sample),
                sample=sample,
                about={"problem_id": problem["id"], "sample": sample},
            )

    def __contains__(self, request: object) -> bool:
        return any(request == own for own in self)
