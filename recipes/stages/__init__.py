"""The stages by type. A new stage is a file here and a line in `AnyStage`."""

from typing import Annotated

from pydantic import Field

from recipes.stages.base_model import BaseModelStage
from recipes.stages.curate import CurateStage
from recipes.stages.distill import DistillStage
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.export_checkpoint import ExportCheckpointStage
from recipes.stages.generate import GenerateStage
from recipes.stages.grpo import GRPOStage
from recipes.stages.import_checkpoint import ImportCheckpointStage
from recipes.stages.problems import ProblemsStage
from recipes.stages.report import ReportStage
from recipes.stages.rewrite import RewriteStage
from recipes.stages.tokenize import TokenizeStage
from recipes.stages.traces import TracesStage

AnyStage = Annotated[
    ProblemsStage
    | BaseModelStage
    | GenerateStage
    | TracesStage
    | RewriteStage
    | CurateStage
    | TokenizeStage
    | ImportCheckpointStage
    | DistillStage
    | ExportCheckpointStage
    | GRPOStage
    | EvaluateStage
    | ReportStage,
    Field(discriminator="type"),
]
