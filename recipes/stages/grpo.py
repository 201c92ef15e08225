"""`grpo`: the student is reinforced on problems whose answers can be verified."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from data_prep.grading import Grader
from data_prep.grading.pool import GradingPool
from reasonforge.artifacts import ArtifactKind
from reasonforge.config import Operational, Strict
from reasonforge.files import read_jsonl
from recipes.engines.trl_grpo import TRLGRPO
from recipes.rewards import RewardWeights, reward_functions
from recipes.stage import InputOf, Stage, StageContext


class GRPOInputs(Strict):
    """What goes in."""

    model: Annotated[str, InputOf("hf_checkpoint")]
    """The student to reinforce."""
    problems: Annotated[str, InputOf("problems")]
    """Its train.jsonl is what the student practises on."""


class GRPOStage(Stage):
    """Reinforce a student with verifiable rewards."""

    kind: ClassVar[ArtifactKind] = "hf_checkpoint"

    type: Literal["grpo"] = "grpo"
    inputs: GRPOInputs
    grader: Grader
    """Decides the accuracy reward."""
    rewards: RewardWeights = RewardWeights()
    """What is rewarded."""
    engine: TRLGRPO
    """What trains, and how."""
    workers: Annotated[int, Operational(), Field(gt=0)] = 2
    """Processes that grade."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The engine's modules and the grader's."""
        return (*self.engine.needs, *self.grader.needs)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Train and write the checkpoint with its metrics.jsonl."""
        problems = list(read_jsonl(context.path("problems") / "train.jsonl"))
        with GradingPool(self.grader, self.workers) as pool:
            functions, weights = zip(*reward_functions(pool, self.rewards).values(), strict=True)
            return self.engine.train(
                context.path("model"),
                problems,
                functions,
                weights,
                scratch=context.scratch,
                out=context.out,
                seed=context.seed,
                progress=context.progress,
            )
