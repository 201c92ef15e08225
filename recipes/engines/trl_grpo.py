"""Reinforcement with TRL's GRPOTrainer on verifiable rewards: the `trl` engine of `grpo`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reasonforge.config import Operational, Strict
from reasonforge.errors import RequestError
from reasonforge.progress import Progress
from recipes.engines.trl_common import TrainOptions, load_student, save_student, train, training_arguments
from recipes.rewards import RewardFunction


class ReferenceSync(Strict):
    """Let the reference model follow the policy: ref = mix * policy + (1 - mix) * ref (TR-DPO, arXiv 2404.09656)."""

    every: int = Field(512, gt=0)
    """Optimiser steps between two syncs."""
    mix: float = Field(0.6, gt=0, le=1)
    """The policy's share; 1 resets the reference to the policy."""


class TRLGRPO(TrainOptions):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300) with DAPO's settings (arXiv 2503.14476)."""

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "trl", "datasets")

    type: Literal["trl"] = "trl"
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate; 1e-6 is DAPO's."""
    prompts: int = Field(32, gt=0)
    """Problems sampled a generation."""
    group_size: int = Field(8, gt=1)
    """Completions a problem: the group that its advantage is relative to."""
    updates: int = Field(1, gt=0)
    """Optimiser steps a generation; prompts x group_size is split evenly among them."""
    micro_batch_size: Annotated[int | None, Operational(), Field(gt=0)] = None
    """Completions a forward pass; null takes a step's whole share at once."""
    max_completion_tokens: int = Field(gt=0)
    """Completions are cut here."""
    mask_truncated: bool = True
    """Leave completions that were cut out of the loss (DAPO's overlong filtering)."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature."""
    clip_low: float = Field(0.2, gt=0)
    """Lower bound of the ratio clip: 1 - clip_low."""
    clip_high: float = Field(0.28, gt=0)
    """Upper bound of the ratio clip: 1 + clip_high (DAPO's clip-higher)."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    """How token losses are averaged: dapo by all the tokens of a generation, grpo by sequence first, dr_grpo by a
    constant (arXiv 2503.20783), bnpo by the tokens of a batch."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group or of the batch, or not at all (Dr. GRPO)."""
    kl_coefficient: float = Field(0.0, ge=0)
    """Weight of the KL penalty against the reference model; 0 keeps no reference (DAPO)."""
    sync_reference: ReferenceSync | None = None
    """Let the reference model follow the policy; needs a kl_coefficient above 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        completions = self.prompts * self.group_size
        if completions % self.updates:
            raise ValueError(
                f"prompts x group_size = {completions} is not divisible by updates = {self.updates}; "
                f"choose updates among the divisors of {completions}"
            )
        share = completions // self.updates
        if self.micro_batch_size and share % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide a step's {share} completions "
                f"(prompts x group_size / updates); choose a divisor of {share}"
            )
        if self.save_every % self.updates:
            raise ValueError(
                f"save_every = {self.save_every} is not a multiple of updates = {self.updates}, so a resume "
                f"would fall inside a generation; take {-(-self.save_every // self.updates) * self.updates}"
            )
        if self.sync_reference and not self.kl_coefficient:
            raise ValueError(
                "sync_reference is given but kl_coefficient is 0, so there is no reference model; "
                "raise kl_coefficient or leave sync_reference out"
            )
        return self

    def train(
        self,
        student: Path,
        problems: Sequence[dict[str, Any]],
        rewards: Sequence[RewardFunction],
        weights: Sequence[float],
        *,
        scratch: Path,
        out: Path,
        seed: int,
        progress: Callable[[str, int, str], Progress],
    ) -> dict[str, Any]:
        """Reinforce `student` on problem rows and write the checkpoint to `out`; returns counts.

        Args:
            rewards: TRL reward functions: keyword arguments `completions` and the dataset's columns, a float each.
            weights: a weight for each reward.

        Raises RequestError where there are fewer problems than one generation takes.
        """
        from datasets import Dataset
        from trl import GRPOTrainer

        if len(problems) < self.prompts:
            raise RequestError(
                f"engine.prompts = {self.prompts}",
                f"a generation takes more problems than the {len(problems)} there are",
                f"set it to {len(problems)} or less, or make more problems",
            )
        model, tokenizer = load_student(student)
        rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in problems]
        trainer = GRPOTrainer(
            model=model,
            args=self._arguments(scratch, seed, weights),
            reward_funcs=list(rewards),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        if self.sync_reference:
            trainer.add_callback(_reference_keeper(trainer))
        with progress("reinforcing", self.steps, "steps") as bar:
            metrics = train(trainer, self, scratch, bar)
        save_student(model, tokenizer, student, metrics, scratch, out)
        generations = -(-self.steps // self.updates)
        return {
            "steps": self.steps,
            "completions": generations * self.prompts * self.group_size,
            "reward": [row["reward"] for row in metrics if "reward" in row][-1],
        }

    def _arguments(self, scratch: Path, seed: int, weights: Sequence[float]) -> Any:
        from trl import GRPOConfig

        share = self.prompts * self.group_size // self.updates
        micro = self.micro_batch_size or share
        reference: dict[str, Any] = {}
        if sync := self.sync_reference:
            reference = {"sync_ref_model": True, "ref_model_sync_steps": sync.every, "ref_model_mixup_alpha": sync.mix}
        return GRPOConfig(
            **training_arguments(self, scratch, seed),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=share // micro,
            steps_per_generation=self.updates * (share // micro),
            num_generations=self.group_size,
            max_completion_length=self.max_completion_tokens,
            mask_truncated_completions=self.mask_truncated,
            temperature=self.temperature,
            epsilon=self.clip_low,
            epsilon_high=self.clip_high,
            loss_type=self.loss_type,
            scale_rewards=self.scale_rewards,
            beta=self.kl_coefficient,
            reward_weights=list(weights),
            **reference,
        )


def _reference_keeper(trainer: Any) -> Any:
    """A callback that saves a synced reference in each checkpoint and restores it: TRL would start from the student."""
    from transformers import TrainerCallback

    class ReferenceKeeper(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:
                reference = trainer.accelerator.unwrap_model(trainer.ref_model)
                saved = type(reference).from_pretrained(reference_of(args, state), dtype=reference.dtype)
                reference.load_state_dict(saved.state_dict())

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.unwrap_model(trainer.ref_model).save_pretrained(reference_of(args, state))

    def reference_of(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "reference"

    return ReferenceKeeper()
