"""From folders of text to a tokenizer and a prepared dataset."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from megacontext.errors import ConfigError, ModelNotFound
from megacontext.models.fingerprints import hash_tokenizer
from megacontext.training.corpus import (
    SPLITS,
    CorpusConfig,
    SourceFile,
    Split,
    collect,
    deduplicate_and_split,
)
from megacontext.training.dataset import MANIFEST, write_documents, write_manifest, write_split
from megacontext.training.tokenizer import save_tokenizer, train_tokenizer

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The de-duplicated corpus by split; ``counts``: files seen, and left out or dropped for which reason."""

    by_split: dict[Split, list[SourceFile]]
    counts: dict[str, dict[str, int]]

    def __len__(self) -> int:
        return sum(len(files) for files in self.by_split.values())


def gather(config: CorpusConfig, *, progress: Progress = lambda _: None) -> Gathered:
    """Read the corpus; ``progress`` is told of every file read. DatasetError where a split would be empty."""
    seen: Counter[str] = Counter()

    def files() -> Iterator[SourceFile]:
        for file in collect(config, seen):
            progress(1)
            yield file

    by_split, dropped = deduplicate_and_split(files(), config)
    return Gathered(by_split=by_split, counts={"seen": dict(seen), "dropped": dropped})


def make_tokenizer(
    config: CorpusConfig, *, vocab_size: int, max_bytes: int, output: Path, gathered: Gathered | None = None
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on an even sample of the training split and save it into ``output``.

    ``gathered``: what ``gather`` has read already.
    """
    files = even_sample((gathered or gather(config)).by_split["train"], max_bytes)
    tokenizer = train_tokenizer((file.text for file in files), vocab_size=vocab_size)
    save_tokenizer(tokenizer, output)
    return tokenizer


def even_sample(files: list[SourceFile], max_bytes: int | None) -> list[SourceFile]:
    """Whole files, evenly spread, of about ``max_bytes`` together (None: all)."""
    if max_bytes is None:
        return files
    return files[:: max(1, -(-sum(len(file.text) for file in files) // max_bytes))]


def prepare(
    config: CorpusConfig,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    *,
    max_train_bytes: int | None = None,
    gathered: Gathered | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Write one file a split, ``documents.jsonl`` and ``manifest.json`` into ``output``; returns the manifest.

    The result is a function of the files, the configuration and the tokenizer: running it again gives the same bytes.
    ``max_train_bytes`` keeps an even sample of whole training files; ``gathered``: what ``gather`` has read already;
    ``progress`` is told of every file written. ConfigError for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-text token, which closes documents: set its eos_token")
    corpus = gathered or gather(config)
    by_split = corpus.by_split | {"train": even_sample(corpus.by_split["train"], max_train_bytes)}
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)
    parts: dict[Split, dict[str, Any]] = {}
    documents: list[dict[str, Any]] = []
    for split in SPLITS:
        parts[split], records = write_split(
            split,
            by_split[split],
            lambda texts: [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]],
            eos=int(tokenizer.eos_token_id),
            vocab_size=len(tokenizer),
            path=output / f"{split}.safetensors",
            progress=progress,
        )
        documents += records
    manifest = {
        "corpus": json.loads(json.dumps(dataclasses.asdict(config))),
        "python": platform.python_version(),
        **corpus.counts,
        "vocab_size": len(tokenizer),
        "tokenizer": hash_tokenizer(tokenizer),
        "documents": write_documents(output, documents),
        "splits": parts,
    }
    write_manifest(output, manifest)
    return manifest


def context_length_of(base: str) -> int:
    """Positions that a base model was made for, from its configuration alone. ModelNotFound, ConfigError."""
    try:
        config = AutoConfig.from_pretrained(base).get_text_config(decoder=True)
    except (OSError, ValueError) as err:
        raise ModelNotFound(f"{base} is no model that can be read here: pass a folder that holds config.json") from err
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"the configuration of {base} names no max_position_embeddings: its range is unknown")
    return length
