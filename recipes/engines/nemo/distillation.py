"""Learning a teacher's logits: what `llm.distill` of NeMo 2.7 does, with the student that `configuration` made.

`llm.distill` reads the student's configuration from its checkpoint, so that recomputation, kernels and layers could not
be chosen, and has no way to give the temperature that its loss takes.
"""

import json
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any


def distill(
    model: Any,
    teacher: Any,
    teacher_model_path: str,
    temperature: float,
    next_token_loss: bool,
    scale: float,
    data: Any,
    trainer: Any,
    log: Any,
    resume: Any,
    optim: Any,
    tokenizer: Any = "model",
) -> Path:
    """Train `model` on the logits of `teacher`; returns NeMo's log directory, as `llm.distill` does.

    Args:
        model: the student, an `llm.GPTModel` of any family.
        teacher: the teacher, another; its weights are read from `teacher_model_path`.
        temperature: both models' logits are divided by it.
        next_token_loss: whether the cross-entropy on the traces is learned too.
        scale: the divergence's share beside it.
    The others are `llm.train`'s.
    """
    from nemo.collections import llm
    from nemo.collections.llm.modelopt.distill import utils
    from nemo.collections.llm.modelopt.distill.loss import LogitsKLLoss
    from nemo.collections.llm.modelopt.distill.model import DistillationGPTModel

    utils.LogitsKLLoss = partial(LogitsKLLoss, temperature=temperature)
    with NamedTemporaryFile("w", suffix=".yaml") as settings:  # of this process alone: NeMo takes a file only
        json.dump({"skip_lm_loss": not next_token_loss, "kd_loss_scale": scale}, settings)
        settings.flush()
        student = DistillationGPTModel(
            model.config,
            teacher.config,
            teacher_ckpt_path=teacher_model_path,
            distillation_config_path=settings.name,
            tokenizer=model.tokenizer,
        )
        student.__io__ = model.__io__  # so that its checkpoints load as the student's own class
        found: Path = llm.train(
            model=student, data=data, optim=optim, tokenizer=tokenizer, trainer=trainer, log=log, resume=resume
        )
    return found
