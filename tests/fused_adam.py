"""Transformer Engine's FusedAdam without its kernels, for tests only. Megatron-core's distributed optimizer saves and
loads its state with that one (or apex's): torch's own counts its steps in the state of each parameter, which breaks the
one in 0.15.3 (optimizer/distrib_optimizer.py, sharded_param_state_dp_reshardable) and the other in 0.16.1 (state_dict).
"""

from typing import Any

import torch
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.Optimizer):
    """AdamW as torch computes it, that counts the steps of each group of parameters, where the group has any."""

    def __init__(self, params: Any, adam_w_mode: bool, **defaults: Any):
        assert adam_w_mode
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, *_: object) -> None:
        for group in self.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1
            self._step(group, [parameter for parameter in group["params"] if parameter.grad is not None])

    def _step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        first, second = (
            [self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq")
        )
        before = [torch.tensor(group["step"] - 1.0) for _ in parameters]  # adamw counts each of them on
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [parameter.grad for parameter in parameters], first, second, [], before, foreach=False,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=False,
        )  # fmt: skip


def use_fused_adam() -> None:
    """What megatron-core does where it finds Transformer Engine's."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_TE_OPTIMIZER = True
