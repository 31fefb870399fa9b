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
from pydantic import BaseModel, Field, ValidationError, model_validator

from megacontext.errors import ConfigError
from megacontext.training.curriculum import Curriculum
from megacontext.training.frozen import Frozen
from megacontext.training.loss_mix import LossMix

ROTARY_SHARE = 0.25
"""Part of each of the base's heads that carries positions."""


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
    """Size of the base model; ``width`` (a multiple of ``head_dim``) is the dial, the rest follows.

    A quarter of each head carries positions. ``induction`` writes the circuit of ``training.induction`` into the initial
    weights, for which ``rope_theta`` must tell any two distances within ``context_length`` apart.
    """

    width: int = Field(default=192, gt=0)
    layers: int = Field(default=4, gt=0)
    head_dim: int = Field(default=32, gt=0)
    context_length: int = 1152
    rope_theta: float = 1_000.0
    embedding_std: float = 0.1
    induction: bool = True

    @model_validator(mode="after")
    def _circuit_fits(self) -> Self:
        if self.width % self.head_dim or self.head_dim % 8:
            raise ValueError("width must be a multiple of head_dim, and head_dim of 8: a quarter of it turns in pairs")
        if self.induction and (self.width < 3 * self.content or self.layers < 2):
            raise ValueError("the induction circuit needs two layers and three heads: take a larger width or induction: false")
        return self

    @property
    def rotary(self) -> int:
        """Dimensions of a head that carry positions."""
        return int(self.head_dim * ROTARY_SHARE)

    @property
    def content(self) -> int:
        """c, the dimensions of a head that positions leave alone."""
        return self.head_dim - self.rotary

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
    """``train base``: a small causal LM from scratch; ``embedding_lr`` as in ``NativeConfig``.

    ``repeats`` and ``recall``: shares of windows with pasted repeats and with recall lines (``training.augment``).
    """

    dataset: Path
    tokenizer: Path
    shape: BaseShape = BaseShape()
    batch: int = 4
    repeats: float = Field(default=0.5, ge=0, le=1)
    recall: float = Field(default=0.0, ge=0, le=1)
    embedding_lr: float = Field(default=1.0, gt=0)
    windows: WindowsConfig = WindowsConfig()


class GistNetShape(Frozen):
    """Size and read-out of a GistNet; its width is the base's, ``hidden`` its inner one (None: the base's).
    ``position_stride``: the window positions that each of its gists takes."""

    heads: int = 6
    layers: int = 2
    hidden: int | None = None
    mlp_ratio: float = 2.0
    vectors: int = 1
    readout: str = "softmax_pool"
    levels: int = 2
    position_stride: int = 1


class LookupShape(Frozen):
    """Key/value gists (``models.kv_gistnet``) instead of vectors in the embedding space. ``heads`` (layer, key/value head)
    None: those of the base that look things up; ``entries`` None: as many as one raw token's keys and values pay for.

    ``noise`` on the scores while a base learns to read them, in nats; ``reluctance`` of what reads them (``KeyValueLayout``).
    """

    heads: tuple[tuple[int, int], ...] | None = None
    entries: int | None = Field(default=None, ge=1)
    vectors: int = 1
    layers: int = 0
    hidden: int = 64
    attention_heads: int = 4
    reluctance: float = Field(default=0.0, ge=0)
    noise: float = Field(default=1.0, ge=0)


class LoraShape(Frozen):
    """Low-rank adapters on every linear layer of a base that stays as it is otherwise (Hu et al. 2021,
    https://arxiv.org/abs/2106.09685): updates of ``rank``, scaled by ``alpha / rank``."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)


class MixConfig(Frozen):
    """How substituted windows are drawn, in blocks and probabilities.

    With probability ``banded`` a micro-batch is rows of ``blocks`` in which every token is predicted behind gists, in groups of
    ``group`` blocks (``training.band``); else windows of ``far`` blocks at random detail with a raw ``tail``, where with
    probability ``lod2`` up to ``most_spans`` LOD2 spans stand in front. ``absolute`` is the share of those with absolute
    instead of window positions. A token that occurs in the gisted part and not nearer weighs ``1 + far_weight``.

    Rows behind key/value gists see ``farther`` more blocks (between, inclusive) as gists before their first token: what stands
    there in the corpus or, with probability ``strange``, a stretch from elsewhere, in which nothing is to be found.
    """

    rows: int = 4
    banded: float = Field(default=0.0, ge=0, le=1)
    blocks: int = Field(default=34, ge=2)
    group: tuple[int, int] = (4, 8)
    farther: tuple[int, int] = (0, 0)
    strange: float = Field(default=0.5, ge=0, le=1)
    far_weight: float = Field(default=0.0, ge=0)
    far: tuple[int, int] = (8, 28)
    tail: int = Field(default=8, ge=1)
    lod2: float = Field(default=0.2, ge=0, le=1)
    most_spans: int = Field(default=2, ge=1)
    all_gists: float = 0.5
    repeats: float = Field(default=0.3, ge=0, le=1)
    recall: float = Field(default=0.0, ge=0, le=1)
    absolute: float = 0.25


class NativeConfig(RunConfig):
    """``train native``: a base together with a GistNet, from scratch (``tokenizer`` and ``shape``) or from ``init``.

    ``gist_lr`` and ``embedding_lr``: shares of the learning rates that the GistNet and the embeddings get. A GistNet
    that stays as it starts (0) gives the base one code to learn to read, as key/value gists (``lookup``) are.
    ``lora``: only adapters learn; they are merged into the base that is exported.
    """

    dataset: Path
    init: Path | None = None
    tokenizer: Path | None = None
    shape: BaseShape = BaseShape()
    plain_rows: int = 2
    repeats: float = Field(default=0.5, ge=0, le=1)
    recall: float = Field(default=0.0, ge=0, le=1)
    gist_lr: float = Field(default=0.0, ge=0)
    embedding_lr: float = Field(default=1.0, gt=0)
    gistnet: GistNetShape = GistNetShape()
    lookup: LookupShape | None = None
    lora: LoraShape | None = None
    mix: MixConfig = MixConfig(rows=2, banded=1.0, far_weight=2.0, repeats=0.5)
    loss: LossMix = LossMix()
    windows: WindowsConfig = WindowsConfig()

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if (self.init is None) == (self.tokenizer is None):
            raise ValueError("give either init, a base to go on from, or tokenizer, to start from scratch")
        if self.lora is not None and self.init is None:
            raise ValueError("lora adapts a base that is there: give init")
        return self

    @model_validator(mode="after")
    def _losses_have_something_to_move(self) -> Self:
        if self.loss.reconstruction:
            raise ValueError("loss.reconstruction reads with a head for a base that is frozen: use it in train gist")
        if self.loss.contrastive and not self.gist_lr:
            raise ValueError("loss.contrastive moves the GistNet alone: give it a gist_lr")
        return self

    @model_validator(mode="after")
    def _lookups_are_banded(self) -> Self:
        if self.lookup is not None and (self.mix.banded < 1 or self.gist_lr):
            raise ValueError("behind key/value gists windows are banded and the gists as they are: mix.banded 1, gist_lr 0")
        return self


class TeacherConfig(Frozen):
    """Slices with a cached teacher instead of windows from the split: ``slices``, the folder of ``prepare_dataset --slices``;
    ``cache``, where the base's ``top`` likeliest tokens are kept."""

    slices: Path
    cache: Path
    top: int = Field(default=64, ge=1)


class GistConfig(RunConfig):
    """``train gist``: a GistNet for a frozen base, fresh or from ``init``; with ``lookup`` one for key/value gists.

    ``curriculum``: what pattern windows look like at a step (banded ones are as hard as they get from the start); its gists
    of level 2 stand in front as often as ``mix.lod2`` says. ``teacher``: draw the windows from slices whose teacher is
    cached.
    """

    base: Path
    dataset: Path
    init: Path | None = None
    gistnet: GistNetShape = GistNetShape()
    lookup: LookupShape | None = None
    mix: MixConfig = MixConfig()
    loss: LossMix = LossMix()
    curriculum: Curriculum | None = None
    teacher: TeacherConfig | None = None
    windows: WindowsConfig = WindowsConfig()

    @model_validator(mode="after")
    def _lookups_are_banded(self) -> Self:
        alone = self.mix.banded < 1 or self.curriculum or self.teacher or self.loss.reconstruction or self.loss.contrastive
        if self.lookup is not None and alone:
            raise ValueError(
                "key/value gists learn in banded windows (mix.banded 1) by nll, kl and hidden, without curriculum or teacher"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.curriculum is not None and self.mix.banded == 1:
            raise ValueError("a curriculum shapes pattern windows, and mix.banded: 1 draws none: lower it")
        if self.curriculum is not None and self.curriculum.levels > 2:
            raise ValueError("training windows hold gists of levels 1 and 2: set curriculum.levels to 2 at most")
        if self.loss.reconstruction and self.init is None:
            raise ValueError(
                "loss.reconstruction reads with the head beside the GistNet in init: megacontext train reconstruct makes both"
            )
        if self.teacher is not None and (self.mix.banded or self.loss.hidden):
            raise ValueError("a cached teacher knows slices and logits only: set mix.banded and loss.hidden to 0")
        return self


class LensConfig(RunConfig):
    """``train lens``: counterfactual labels, then a LensNet on them.

    ``interval``: tokens after a decision point that count. ``blocks`` of a training item are labelled, over ``horizon`` tokens;
    ``on_policy``: share of the items whose window is as ``policy`` leaves it (a LensNet's folder; None: the longest suffix
    matches). ``labels``: where they are kept (None: ``output``). ``layers`` 0 trains the linear model alone. ``outlier``: gains
    beyond so many standard deviations count as that large. ``ranking`` weighs the pairwise loss, ``neutrality`` the difference
    between the mean score of a window and its mean gain.
    ``validation_seed`` is apart from ``seed``, so that several seeds are compared on the same items.
    """

    base: Path
    gistnet: Path
    dataset: Path
    labels: Path | None = None
    train_items: int = 400
    validation_items: int = 64
    validation_seed: int = 1001
    interval: int = 8
    horizon: int = Field(default=128, ge=16)
    blocks: int = Field(default=14, ge=1)
    on_policy: float = Field(default=0.5, ge=0, le=1)
    policy: Path | None = None
    layers: int = Field(default=0, ge=0)
    hidden: int = 32
    batch: int = 64
    ridge: float = Field(default=3000.0, gt=0)
    outlier: float = Field(default=6.0, gt=0)
    ranking: float = Field(default=0.1, ge=0)
    neutrality: float = Field(default=0.1, ge=0)
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
