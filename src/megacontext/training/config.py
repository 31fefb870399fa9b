"""Configurations of training runs: one frozen model a recipe, each default written once.

Read from YAML under ``configs/``; ``MEGACONTEXT_<FIELD>`` in the environment and ``--set field=value``
win over the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megacontext.errors import ConfigError


class Frozen(BaseModel):
    """Immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Frozen):
    """What every run has: where it writes, how long it goes on, how it steps, when it stops.

    A step averages the gradients of ``accumulate`` micro-batches, which several processes share (``accelerate launch``;
    ``accelerate`` uses that library for one process too). ``precision`` auto is bf16 on a GPU and fp32 on a CPU.

    ``stop_on`` names a figure of the task's evaluation: the weights with the best one are exported, and the run stops once
    ``patience`` evaluations in a row brought no better one (0: never). ``stop_after_s`` ends a leg with a checkpoint after
    so many seconds; the next call goes on.
    """

    output: Path
    seed: int = 0
    steps: int = Field(gt=0)
    warmup: int = Field(default=20, ge=0)
    decay_from: float = Field(default=0.6, ge=0, le=1)
    matrix_lr: float = 0.02
    other_lr: float = 0.003
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    accelerate: bool = False
    checkpoint_every_s: float = 180.0
    evaluate_every: int = Field(default=100, ge=1)
    stop_on: str | None = None
    better: Literal["lower", "higher"] = "lower"
    patience: int = Field(default=0, ge=0)
    stop_after_s: float | None = Field(default=None, gt=0)
    tracker: Literal["none", "trackio", "wandb"] = "none"

    @model_validator(mode="after")
    def _patience_for_something(self) -> Self:
        if self.patience and self.stop_on is None:
            raise ValueError("patience needs stop_on, the figure of the evaluation to wait for")
        return self


class TokenizerConfig(Frozen):
    """``train tokenizer``: byte-level BPE on the training split of a corpus."""

    output: Path
    vocab_size: int = Field(default=4096, ge=300)
    roots: tuple[str, ...] = ()
    max_bytes: int = 24_000_000


class BaseShape(Frozen):
    """Size of the base model; ``width`` is the dial, the rest follows."""

    width: int = 192
    layers: int = 4
    head_dim: int = 32
    context_length: int = 1152
    rope_theta: float = 1_000.0
    embedding_std: float = 0.1
    induction: bool = True

    @property
    def intermediate(self) -> int:
        """Width of the MLP: 8/3 of the model's, rounded up to a multiple of 64."""
        return -(-self.width * 8 // 3 // 64) * 64


class WindowsConfig(Frozen):
    """Validation windows, in tokens."""

    far: int = 896
    tail: int = 128
    horizon: int = 64
    items: int = 48


class BaseConfig(RunConfig):
    """``train base``: a small causal LM from scratch."""

    dataset: Path
    tokenizer: Path
    shape: BaseShape = BaseShape()
    batch: int = 4
    repeats: float = Field(default=0.5, ge=0, le=1)
    windows: WindowsConfig = WindowsConfig()


class GistNetShape(Frozen):
    """Size and read-out of a GistNet; its width is the base's."""

    heads: int = 6
    layers: int = 2
    mlp_ratio: float = 2.0
    vectors: int = 1
    readout: str = "softmax_pool"
    levels: int = 2


class MixConfig(Frozen):
    """How substituted windows are drawn, in blocks and probabilities.

    ``far`` blocks are mostly gists, ``tail`` blocks raw; with probability ``lod2`` up to ``most_spans``
    LOD2 spans stand in front; ``absolute`` is the share with absolute instead of window positions.
    """

    rows: int = 4
    far: tuple[int, int] = (8, 28)
    tail: int = 8
    lod2: float = 0.2
    most_spans: int = 2
    all_gists: float = 0.5
    repeats: float = 0.3
    absolute: float = 0.25


class NativeConfig(RunConfig):
    """``train native``: continue a base together with a GistNet."""

    init: Path
    dataset: Path
    plain_rows: int = 2
    repeats: float = 0.5
    gistnet: GistNetShape = GistNetShape()
    mix: MixConfig = MixConfig()
    windows: WindowsConfig = WindowsConfig()


class GistConfig(RunConfig):
    """``train gist``: a GistNet for a frozen base."""

    base: Path
    dataset: Path
    init: Path | None = None
    gistnet: GistNetShape = GistNetShape()
    mix: MixConfig = MixConfig()
    windows: WindowsConfig = WindowsConfig()


class LensConfig(RunConfig):
    """``train lens``: counterfactual labels, then a LensNet on them.

    ``interval``: tokens after a decision point that count. ``scale``: the unit of gains, in standard
    deviations of the centred gain. ``ranking`` weighs the pairwise loss against the regression. ``wanted``: share of the blocks
    that shall pass the allocator's threshold.
    """

    base: Path
    gistnet: Path
    dataset: Path
    train_items: int = 400
    validation_items: int = 64
    interval: int = 16
    hidden: int = 32
    batch: int = 64
    ridge: float = 100.0
    scale: float = 0.5
    ranking: float = 0.1
    wanted: float = Field(default=0.25, gt=0, le=0.5)
    windows: WindowsConfig = WindowsConfig()


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(kind: type[ConfigT], path: Path, overrides: Mapping[str, Any] | None = None) -> ConfigT:
    """Read ``path`` as ``kind``; environment over file, ``overrides`` over both (``shape.width`` names an inner field).

    Raises ConfigError that names the file, the field and what is wrong with it.
    """
    if not path.is_file():
        raise ConfigError(f"no configuration at {path}: see configs/ for those that ship")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as err:
        raise ConfigError(f"{path} is not valid YAML: {err}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of fields, not a {type(values).__name__}")
    for name in kind.model_fields:
        variable = f"MEGACONTEXT_{name.upper()}"
        if variable in os.environ:
            values[name] = yaml.safe_load(os.environ[variable])
    for name, value in (overrides or {}).items():
        _set(values, name, value)
    try:
        return kind.model_validate(values)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in err.errors())
        raise ConfigError(f"{path}: {problems}") from err


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    outer, _, inner = name.partition(".")
    if not inner:
        values[outer] = value
        return
    if not isinstance(values.get(outer), dict):
        values[outer] = {}
    _set(values[outer], inner, value)
