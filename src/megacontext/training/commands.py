"""What ``megacontext train …`` runs: a configuration file in, plain data about the result out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from megacontext.training.config import (
    BaseConfig,
    GistConfig,
    LensConfig,
    NativeConfig,
    RunConfig,
    TokenizerConfig,
    load_config,
)
from megacontext.training.corpus import CorpusConfig
from megacontext.training.loop import Task, fit

Overrides = Mapping[str, Any]
ConfigT = TypeVar("ConfigT", bound=RunConfig)


def run_tokenizer(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Train a tokenizer on the training split of a corpus."""
    from megacontext.training.prepare import make_tokenizer

    config = load_config(TokenizerConfig, path, overrides)
    tokenizer = make_tokenizer(
        CorpusConfig(roots=config.roots),
        vocab_size=config.vocab_size,
        max_bytes=config.max_bytes,
        output=config.output,
    )
    return {"output": str(config.output), "vocab_size": len(tokenizer)}


def run_base(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Train a base model from scratch."""
    from megacontext.training.base import BaseTask

    return _run(BaseConfig, lambda config: BaseTask(config), path, overrides, quiet)


def run_native(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Continue a base together with a GistNet."""
    from megacontext.training.native import NativeTask

    return _run(NativeConfig, lambda config: NativeTask(config), path, overrides, quiet)


def run_gist(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Train a GistNet for a frozen base."""
    from megacontext.training.gist import GistTask

    return _run(GistConfig, lambda config: GistTask(config, quiet=quiet), path, overrides, quiet)


def run_reconstruct(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Train a GistNet so that its tokens can be read back from a gist, and the head that reads them."""
    from megacontext.training.reconstruction import ReconstructConfig, ReconstructTask

    return _run(ReconstructConfig, lambda config: ReconstructTask(config, quiet=quiet), path, overrides, quiet)


def run_lens(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Measure labels, then train a LensNet on them."""
    from megacontext.training.lens import LensTask

    return _run(LensConfig, lambda config: LensTask(config, quiet=quiet), path, overrides, quiet)


def run_dense(path: Path, overrides: Overrides | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Train the bi-encoder that the quality benchmark compares with."""
    from megacontext.training.dense import DenseConfig, DenseTask

    return _run(DenseConfig, lambda config: DenseTask(config), path, overrides, quiet)


def _run(
    kind: type[ConfigT],
    make: Callable[[ConfigT], Task],
    path: Path,
    overrides: Overrides | None,
    quiet: bool,
) -> dict[str, Any]:
    config = load_config(kind, path, overrides)
    outcome = fit(make(config), config, quiet=quiet)
    return {
        "output": str(config.output / "model"),
        "step": outcome.step,
        "steps": outcome.steps,
        "ended": outcome.ended,
        "exported": outcome.exported,
        "validation": outcome.evaluation,
    }
