"""Folders of text into deterministic 32-token blocks, and on request into long slices.

Without roots and environments: the running interpreter's standard library and its ``site-packages``. The same files,
tokenizer and settings give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megacontext.errors import MegaContextError, ModelNotFound
from megacontext.training.config import TokenizerConfig
from megacontext.training.corpus import CorpusConfig
from megacontext.training.environments import environment_roots
from megacontext.training.prepare import context_length_of, even_sample, gather, make_tokenizer, prepare
from megacontext.training.progress import bar
from megacontext.training.slices import SliceConfig, write_slices

VOCAB_SIZE: int = TokenizerConfig.model_fields["vocab_size"].default
SAMPLE_BYTES: int = TokenizerConfig.model_fields["max_bytes"].default


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    slices, corpus = SliceConfig(), CorpusConfig()
    result = argparse.ArgumentParser(prog="python -m tools.prepare_dataset", description=__doc__.splitlines()[0])
    packages = "folders whose direct children are packages, the unit of splitting"
    result.add_argument("folders", nargs="*", metavar="ROOT", help=packages)
    result.add_argument("--roots", nargs="+", action="extend", default=[], metavar="ROOT", help="the same; may be repeated")
    result.add_argument(
        "--environment", action="append", type=Path, default=[], metavar="DIR", help="the packages of a Python environment too"
    )
    result.add_argument("--suffixes", nargs="+", default=list(corpus.suffixes), help="files to read (%(default)s)")
    result.add_argument("--output", type=Path, required=True, help="folder for the blocks and manifest.json")
    result.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: train one into OUTPUT/tokenizer)")
    result.add_argument("--base", help="a model to prepare for: its tokenizer, and slices have to fit its range")
    result.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="of the tokenizer that is trained (%(default)s)")
    result.add_argument("--max-train-bytes", type=int, help="keep an even sample of about this many bytes for training")
    result.add_argument("--held-out-percent", type=int, default=corpus.held_out_percent, help="of packages (%(default)s)")
    result.add_argument("--slices", action="store_true", help="also cut long slices with a horizon")
    result.add_argument("--context-length", type=int, default=slices.context_length, help="tokens a slice (%(default)s)")
    result.add_argument("--stride", type=int, default=slices.stride, help="tokens between slices (%(default)s)")
    result.add_argument("--horizon", type=int, default=slices.horizon, help="tokens after a slice (%(default)s)")
    result.add_argument("--json", action="store_true", help="print the manifests as one JSON document")
    result.add_argument("--quiet", action="store_true", help="no progress")
    return result


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare; returns the manifest, with that of the slices as ``slices`` where they were asked for."""
    roots = [*args.folders, *args.roots, *(str(root) for each in args.environment for root in environment_roots(each))]
    corpus = CorpusConfig(
        roots=tuple(dict.fromkeys(roots)), suffixes=tuple(args.suffixes), held_out_percent=args.held_out_percent
    )
    cut = SliceConfig(context_length=args.context_length, stride=args.stride, horizon=args.horizon)
    if args.base is not None and args.slices:
        cut.require_range(context_length_of(args.base))
    ready = args.tokenizer or args.base
    tokenizer = _load_tokenizer(ready) if ready is not None else None
    with bar(quiet=args.quiet) as progress:
        reading = progress.add_task("reading files", total=None)
        gathered = gather(corpus, progress=lambda count: progress.advance(reading, count))
        progress.update(reading, total=progress.tasks[reading].completed)
        if tokenizer is None:
            training = progress.add_task("training the tokenizer", total=1)
            sample, folder = args.max_train_bytes or SAMPLE_BYTES, args.output / "tokenizer"
            tokenizer = make_tokenizer(corpus, vocab_size=args.vocab_size, max_bytes=sample, output=folder, gathered=gathered)
            progress.advance(training)
        dropped = len(gathered.by_split["train"]) - len(even_sample(gathered.by_split["train"], args.max_train_bytes))
        writing = progress.add_task("writing blocks", total=len(gathered) - dropped)
        manifest = prepare(
            corpus,
            tokenizer,
            args.output,
            max_train_bytes=args.max_train_bytes,
            gathered=gathered,
            progress=lambda count: progress.advance(writing, count),
        )
        if args.slices:
            cutting = progress.add_task("cutting slices", total=1)
            manifest = manifest | {"slices": write_slices(args.output, args.output, cut)}
            progress.advance(cutting)
    return manifest


def _load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{folder} holds no tokenizer that can be read: name a folder with tokenizer.json") from error


def show(manifest: dict[str, Any]) -> None:
    """The counts, one line a split."""
    for split, part in manifest["splits"].items():
        print(f"{split:10} {part['documents']:6} documents {part['blocks']:8} blocks {part['tokens']:10} tokens")
    print(f"dropped: {', '.join(f'{count} {reason}' for reason, count in manifest['dropped'].items())}")
    if "slices" in manifest:
        cut = manifest["slices"]["config"]
        for split, part in manifest["slices"]["splits"].items():
            print(f"{split:10} {part['slices']:6} slices of {cut['context_length']} + {cut['horizon']} tokens")


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where the input cannot be used."""
    args = parser().parse_args(argv)
    try:
        manifest = run(args)
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(manifest, indent=1, sort_keys=True))
    else:
        show(manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
