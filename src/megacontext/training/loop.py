"""The training loop: steps, metrics, evaluation, checkpoints, resume. Knows no model.

A :class:`Task` brings parameters, a loss per micro-batch and an evaluation. All randomness of micro-batch ``m`` of step
``s`` is drawn from ``(seed, s, m)``, torch's own included, so a resumed run continues with the numbers that it would
have had, and several processes together have those of one.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from megacontext.errors import CorruptCheckpoint, DivergedError
from megacontext.training.checkpoint import checkpoint_path, checkpoints, load_checkpoint, save_checkpoint
from megacontext.training.config import RunConfig
from megacontext.training.metrics import MetricSink, open_sinks
from megacontext.training.optimizers import build_optimizers, lr_factor, resume_optimizer
from megacontext.training.progress import bar
from megacontext.training.runtime import Runtime, runtime_for
from megacontext.training.watch import Watch

Figures = dict[str, float]
Ending = Literal["finished", "early", "time"]


class Task(Protocol):
    """What is trained. Tensors of a loss belong on ``next(module.parameters()).device``: the loop moves the module to
    the run's device; what else is needed there, the task loads onto ``runtime.device_for(config)``."""

    @property
    def module(self) -> nn.Module:
        """Holds every parameter that is trained (``requires_grad``) and what a checkpoint stores."""

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        """The loss (scalar, nats) of one micro-batch of a step, and further figures to log."""

    def evaluate(self) -> Figures:
        """Figures on the validation split; deterministic. Runs in the weights' own precision."""

    def export(self, folder: Path) -> None:
        """Write the trained model in its loadable form."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run got.

    ``step`` of ``steps`` are done. ``ended``: ``finished``; ``early``, for want of a better evaluation; ``time``, a leg's
    time is up and the same call goes on. ``exported``: the step whose weights were exported, ``evaluation`` their figures.
    """

    step: int
    steps: int
    ended: Ending
    exported: int
    evaluation: Figures


def fit(task: Task, config: RunConfig, *, quiet: bool = False) -> Outcome:
    """Train ``task`` until ``config.steps``, or until it stops early or a leg's time is up; resumes from the newest
    checkpoint in its output. What is exported is the best by ``config.stop_on``, or the newest where nothing is watched.

    Raises DivergedError when a loss, a gradient or the watched figure is not finite (the last good checkpoint stays),
    CorruptCheckpoint when the newest one cannot be read or is another model's, ConfigError for what this machine lacks.
    """
    began = time.monotonic()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    runtime = runtime_for(config)
    task.module.to(runtime.device)
    run = _Run(task, config, runtime)
    ended = run.train(began, quiet=quiet or not runtime.is_main)
    return run.export(ended)


class _Run:
    """One call of ``fit``: the loop over steps, and what it has to keep between them."""

    def __init__(self, task: Task, config: RunConfig, runtime: Runtime) -> None:
        self._task, self._config, self._runtime = task, config, runtime
        self._folder = config.output
        self._optimizers = build_optimizers(
            task.module.named_parameters(),
            matrix_lr=config.matrix_lr,
            other_lr=config.other_lr,
            weight_decay=config.weight_decay,
        )
        self._watch = Watch(config)
        self._done = self._resume()
        self._saved = time.monotonic()

    def train(self, began: float, *, quiet: bool) -> Ending:
        """Steps until something ends them; ``began``: when this leg started."""
        config = self._config
        sinks = self._sinks()
        try:
            before = self._look_first()
            with bar(quiet=quiet) as progress:
                line = progress.add_task("training", total=config.steps, completed=self._done)
                while self._done < config.steps and not self._watch.exhausted:
                    values = self._step(self._done) | before
                    before = {}
                    self._done += 1
                    progress.update(line, advance=1, description=f"loss {values['loss']:.3f}")
                    better = self._evaluate_if_due(values)
                    for sink in sinks:
                        sink.log(self._done - 1, values)
                    time_is_up = self._time_is_up(began)
                    self._save_if_due(better or time_is_up)
                    if time_is_up:
                        break
        finally:
            for sink in sinks:
                sink.close()
        if self._done >= config.steps:
            return "finished"
        return "early" if self._watch.exhausted else "time"

    def export(self, ended: Ending) -> Outcome:
        """Write the best weights, or the newest where nothing is watched."""
        step, figures = self._done, self._watch.figures
        if self._watch.step is None:
            figures = self._evaluate()
        elif self._watch.step != self._done:
            step = self._watch.step
            self._load_best(step)
        if self._runtime.is_main:
            self._task.export(self._folder / "model")
        return Outcome(step=self._done, steps=self._config.steps, ended=ended, exported=step, evaluation=figures)

    # -- one step -----------------------------------------------------------------------------------------------

    def _step(self, step: int) -> Figures:
        config = self._config
        started = time.monotonic()
        self._task.module.train()
        own = [(micro, self._backward(step, micro)) for micro in self._runtime.share]
        figures = _mean([each for _, each in sorted(self._runtime.gather(own), key=lambda pair: pair[0])])
        self._require_finite(figures["loss"], "loss", step)
        trained = [p for p in self._task.module.parameters() if p.requires_grad]
        self._runtime.sum_gradients(trained)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, config.clip))
        self._require_finite(norm, "gradient's norm", step)
        factor = lr_factor(step, steps=config.steps, warmup=config.warmup, decay_from=config.decay_from)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss = figures.pop("loss")
        return {"loss": loss, "grad_norm": norm, "lr_factor": factor, "seconds": time.monotonic() - started, **figures}

    def _backward(self, step: int, micro: int) -> Figures:
        """Add one micro-batch's share to the gradients; its loss and figures."""
        seed = (self._config.seed, step) if micro == 0 else (self._config.seed, step, micro)
        torch.manual_seed(int(np.random.default_rng((*seed, 0x70C4)).integers(2**63)))
        with self._runtime.autocast():
            loss, figures = self._task.loss(step, np.random.default_rng(seed))
        torch.autograd.backward(loss.float() / self._config.accumulate)
        return {"loss": float(loss.detach()), **figures}

    def _require_finite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"the {what} became {value} at step {step}: lower matrix_lr or other_lr and run again; "
                f"it resumes from the last checkpoint in {self._folder}"
            )

    # -- evaluation ---------------------------------------------------------------------------------------------

    def _look_first(self) -> Figures:
        """Where a figure is watched, what training starts from is a candidate too; its figures, to log."""
        if not self._watch.active:
            return {}
        if self._watch.step is None:
            self._watch.see(self._done, self._evaluate())
            self._save()
        return {f"before/{k}": v for k, v in self._watch.figures.items()} if self._done == 0 else {}

    def _evaluate_if_due(self, values: Figures) -> bool:
        """Whether an evaluation was due, and the best so far; its figures are added to ``values``."""
        if self._done != self._config.steps and self._done % self._config.evaluate_every:
            return False
        figures = self._evaluate()
        values |= {f"validation/{k}": v for k, v in figures.items()}
        return self._watch.see(self._done, figures)

    def _evaluate(self) -> Figures:
        self._task.module.eval()
        # Everywhere, since an evaluation may leave traces in a task; the main process's figures count.
        with torch.no_grad():
            figures = self._task.evaluate()
        return self._runtime.from_main(lambda: figures)

    def _time_is_up(self, began: float) -> bool:
        limit = self._config.stop_after_s
        if limit is None:
            return False
        return self._runtime.from_main(lambda: time.monotonic() - began >= limit)

    # -- files --------------------------------------------------------------------------------------------------

    def _sinks(self) -> list[MetricSink]:
        if not self._runtime.is_main:
            return []
        described = json.loads(self._config.model_dump_json())
        (self._folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
        return open_sinks(self._config.tracker, self._folder, described, self._done)

    def _save_if_due(self, due: bool) -> None:
        ended = self._done >= self._config.steps or self._watch.exhausted
        if due or ended or time.monotonic() - self._saved > self._config.checkpoint_every_s:
            self._save()

    def _save(self) -> None:
        state: dict[str, Any] = {
            "module": self._task.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "watch": self._watch.state(),
        }
        if self._runtime.is_main:
            best = self._watch.step
            save_checkpoint(self._folder, self._done, state, keep=() if best is None else (best,))
        self._saved = time.monotonic()

    def _resume(self) -> int:
        """Take over the newest checkpoint; the steps that it has behind it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # The main process reads first, so that no other sees a checkpoint that it has written since.
        name = self._runtime.from_main(lambda: [path.name for path in checkpoints(self._folder)][-1:])
        if not name:
            return 0
        state = load_checkpoint(self._folder / name[0])
        self._load_module(state, name[0])
        try:
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                resume_optimizer(optimizer, saved)
        except (RuntimeError, KeyError, ValueError) as err:
            raise self._foreign(name[0]) from err
        self._watch.load(state.get("watch", {"figure": None}))
        return int(state["step"])

    def _load_best(self, step: int) -> None:
        path = checkpoint_path(self._folder, step)
        if not path.is_file():
            raise CorruptCheckpoint(f"{path}, the best by {self._config.stop_on}, is gone: delete the newer ones to go back")
        self._load_module(load_checkpoint(path), path.name)

    def _load_module(self, state: dict[str, Any], name: str) -> None:
        try:
            self._task.module.load_state_dict(state["module"])
        except (RuntimeError, TypeError) as err:
            raise self._foreign(name) from err

    def _foreign(self, name: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self._folder / name} belongs to another model: choose another output folder or delete it")


def _mean(records: list[Figures]) -> Figures:
    """The mean of each figure over the records that have it."""
    names = dict.fromkeys(name for record in records for name in record)
    found = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
