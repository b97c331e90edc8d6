"""Training of the small networks that annotate, so that a kill costs at most the steps since the last checkpoint.

What is random in a step is drawn from a generator that depends on the seed and the step alone. So a run that was
killed and goes on ends with the same weights, bit for bit on a CPU, as one that was not.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgdm.files import atomic_write
from sgdm.progress import Advance, ignore

StepLoss = Callable[[int, torch.Generator], Tensor]
"""The loss of a step, from its number and a generator of its own on the module's device."""

WARM_UP = 0.1
"""Share of the steps over which the learning rates rise."""

STEPS_A_CHECKPOINT = 500


def fit(
    module: nn.Module,
    loss_of: StepLoss,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.01,
    learning_rates: dict[str, float] | None = None,
    momentum: float = 0.9,
    cycles: int = 1,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    steps_a_checkpoint: int = STEPS_A_CHECKPOINT,
    advance: Advance = ignore,
) -> None:
    """Trains the parameters of `module` that require a gradient, by AdamW under a warm-up and a half cosine.

    `batch` images a step are told to `advance`. `learning_rates` gives submodules, by their names, a rate of their
    own. `cycles` times the rates rise and fall and AdamW, whose mean of gradients decays by `momentum`, begins anew.
    `after_step` runs without gradients after each step, such as the averaging of a teacher, which belongs to the
    module as any state does. `checkpoint` is a file of this very fit: the caller names it by all that decides the
    result, and deletes it once that is kept. ValueError where it is damaged, and where the loss is not finite.
    """
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(
        _groups(module, learning_rate, learning_rates or {}), weight_decay=weight_decay, betas=(momentum, 0.999)
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    steps_a_cycle = -(-steps // cycles)
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        first = _resume(checkpoint, module, optimizer)
        advance(first * batch)
    module.train()
    for step in range(first, steps):
        if step % steps_a_cycle == 0:
            optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step % steps_a_cycle, steps_a_cycle)
        loss = loss_of(step, step_generator(seed, step, device))
        if step % 100 == 0 or step == steps - 1:  # seldom: it waits for the device
            _refuse_no_number(loss.detach(), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if after_step is not None:
            with torch.no_grad():
                after_step(step)
        done = step + 1
        if checkpoint is not None and done % steps_a_checkpoint == 0 and done < steps:
            _save(checkpoint, done, module, optimizer)
        advance(batch)
    module.eval()


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate at a step: rises linearly over WARM_UP of the steps, falls to 0 as a half cosine."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A generator whose numbers depend on its seed and step alone."""
    # Torch mixes the bits of a seed; the large odd factor keeps the streams of neighbouring seeds apart.
    return torch.Generator(device).manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)


def _groups(module: nn.Module, learning_rate: float, own: dict[str, float]) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {"": {"params": [], "lr": learning_rate}}
    groups |= {name: {"params": [], "lr": rate} for name, rate in own.items()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[next((part for part in own if name.startswith(f"{part}.")), "")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _refuse_no_number(loss: Tensor, step: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise ValueError(
            f"the loss is {float(loss)} at step {step}: lower the learning rate, or look for features or images that "
            "are not finite"
        )


def _save(path: Path, done: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with atomic_write(path) as temporary:
        torch.save({"steps": done, "module": module.state_dict(), "optimizer": optimizer.state_dict()}, temporary)


def _resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Steps that were done."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(found["module"])
        optimizer.load_state_dict(found["optimizer"])
        return int(found["steps"])
    except (RuntimeError, KeyError, TypeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no checkpoint of this training ({reason}); delete it to begin anew") from error
