"""The training loop: steps, metrics, evaluation, checkpoints, resume. Knows no model.

A :class:`Task` brings parameters, a loss per step and an evaluation. All randomness of step ``s`` is
drawn from ``(seed, s)``, so a resumed run continues with the numbers that it would have had.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from megacontext.errors import CorruptCheckpoint, DivergedError
from megacontext.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from megacontext.training.config import RunConfig
from megacontext.training.metrics import JsonLines, MetricSink, Trackio
from megacontext.training.optimizers import build_optimizers, lr_factor
from megacontext.training.progress import bar


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """Holds every parameter that is trained (``requires_grad``) and what a checkpoint stores."""

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss (scalar, nats) of one step, and further figures to log."""

    def evaluate(self) -> dict[str, float]:
        """Figures on the validation split; deterministic."""

    def export(self, folder: Path) -> None:
        """Write the trained model in its loadable form."""


def fit(task: Task, config: RunConfig, *, quiet: bool = False) -> dict[str, float]:
    """Train ``task`` until ``config.steps``, resuming from the newest checkpoint in its output.

    Returns the last evaluation. Raises DivergedError when a loss is not finite (the last good
    checkpoint stays), CorruptCheckpoint when the newest one cannot be read.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    described = json.loads(config.model_dump_json())
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    optimizers = build_optimizers(
        task.module.named_parameters(),
        matrix_lr=config.matrix_lr,
        other_lr=config.other_lr,
        weight_decay=config.weight_decay,
    )
    first = _resume(task, optimizers, folder)
    sinks: list[MetricSink] = [JsonLines(folder, first)]
    if config.tracker == "trackio":
        sinks.append(Trackio(folder, described))
    evaluation: dict[str, float] = {}
    try:
        with bar(quiet=quiet) as progress:
            task_id = progress.add_task("training", total=config.steps, completed=first)
            saved = time.monotonic()
            for step in range(first, config.steps):
                values = _step(task, optimizers, config, step)
                progress.update(task_id, advance=1, description=f"loss {values['loss']:.3f}")
                last = step + 1 == config.steps
                if last or (step + 1) % config.evaluate_every == 0:
                    evaluation = _evaluate(task)
                    values |= {f"validation/{k}": v for k, v in evaluation.items()}
                for sink in sinks:
                    sink.log(step, values)
                if last or time.monotonic() - saved > config.checkpoint_every_s:
                    _save(task, optimizers, folder, step + 1)
                    saved = time.monotonic()
    finally:
        for sink in sinks:
            sink.close()
    task.export(folder / "model")
    return evaluation or _evaluate(task)


def _step(task: Task, optimizers: list[torch.optim.Optimizer], config: RunConfig, step: int) -> dict[str, float]:
    factor = lr_factor(step, steps=config.steps, warmup=config.warmup, decay_from=config.decay_from)
    started = time.monotonic()
    task.module.train()
    loss, figures = task.loss(step, np.random.default_rng((config.seed, step)))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss became {value} at step {step}: lower matrix_lr or other_lr and run again; "
            f"it resumes from the last checkpoint in {config.output}"
        )
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_((p for p in task.module.parameters() if p.requires_grad), config.clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "loss": value,
        "grad_norm": float(norm),
        "lr_factor": factor,
        "seconds": time.monotonic() - started,
        **figures,
    }


def _evaluate(task: Task) -> dict[str, float]:
    task.module.eval()
    with torch.no_grad():
        return task.evaluate()


def _save(task: Task, optimizers: list[torch.optim.Optimizer], folder: Path, step: int) -> None:
    state: dict[str, Any] = {
        "module": task.module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    save_checkpoint(folder, step, state)


def _resume(task: Task, optimizers: list[torch.optim.Optimizer], folder: Path) -> int:
    found = checkpoints(folder)
    if not found:
        return 0
    state = load_checkpoint(found[-1])
    try:
        task.module.load_state_dict(state["module"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError) as err:
        raise CorruptCheckpoint(f"{found[-1]} belongs to another model: choose another output folder or delete it") from err
    return int(state["step"])
