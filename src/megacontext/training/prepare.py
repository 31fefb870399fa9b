"""From folders of source text to a tokenizer and a prepared dataset."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megacontext.training.corpus import (
    SPLITS,
    CorpusConfig,
    SourceFile,
    Split,
    collect,
    deduplicate_and_split,
)
from megacontext.training.dataset import write_manifest, write_split
from megacontext.training.tokenizer import save_tokenizer, train_tokenizer


def gather(config: CorpusConfig) -> tuple[dict[Split, list[SourceFile]], dict[str, int]]:
    """The de-duplicated corpus by split, and how many files were dropped and why."""
    return deduplicate_and_split(collect(config), config)


def make_tokenizer(config: CorpusConfig, *, vocab_size: int, max_bytes: int, output: Path) -> PreTrainedTokenizerFast:
    """Train a tokenizer on an even sample of the training split and save it into ``output``."""
    files = gather(config)[0]["train"]
    total = sum(len(file.text) for file in files)
    stride = max(1, -(-total // max_bytes))
    tokenizer = train_tokenizer((file.text for file in files[::stride]), vocab_size=vocab_size)
    save_tokenizer(tokenizer, output)
    return tokenizer


def prepare(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    *,
    max_train_bytes: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write one file a split and ``manifest.json`` into ``output``; returns the manifest.

    The result is a function of the files, the configuration and the tokenizer: running it again
    gives the same bytes. ``max_train_bytes`` keeps an even sample of whole training files.
    """
    output.mkdir(parents=True, exist_ok=True)
    by_split, dropped = gather(config)
    if max_train_bytes is not None:
        total = sum(len(file.text) for file in by_split["train"])
        stride = max(1, -(-total // max_train_bytes))
        by_split["train"] = by_split["train"][::stride]
    splits = {
        split: write_split(
            by_split[split],
            lambda texts: [list(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]],
            eos=int(tokenizer.eos_token_id),
            vocab_size=len(tokenizer),
            path=output / f"{split}.safetensors",
            progress=progress,
        )
        for split in SPLITS
    }
    manifest = {
        "corpus": json.loads(json.dumps(dataclasses.asdict(config))),
        "python": platform.python_version(),
        "dropped": dropped,
        "vocab_size": len(tokenizer),
        "splits": splits,
    }
    write_manifest(output, manifest)
    return manifest
