"""Folders of source text into deterministic 32-token blocks, and on request into long slices.

Without roots: the running interpreter's standard library and its ``site-packages``. The same files, tokenizer and settings
give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from megacontext.errors import MegaContextError
from megacontext.training.config import TokenizerConfig
from megacontext.training.corpus import CorpusConfig
from megacontext.training.prepare import make_tokenizer, prepare
from megacontext.training.slices import SliceConfig, write_slices

VOCAB_SIZE: int = TokenizerConfig.model_fields["vocab_size"].default
SAMPLE_BYTES: int = TokenizerConfig.model_fields["max_bytes"].default


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    slices, corpus = SliceConfig(), CorpusConfig()
    result = argparse.ArgumentParser(prog="python -m tools.prepare_dataset", description=__doc__.splitlines()[0])
    result.add_argument("roots", nargs="*", help="folders whose direct children are packages, the unit of splitting")
    result.add_argument("--output", type=Path, required=True, help="folder for the blocks and manifest.json")
    result.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: train one into OUTPUT/tokenizer)")
    result.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="of the tokenizer that is trained (%(default)s)")
    result.add_argument("--max-train-bytes", type=int, help="keep an even sample of about this many bytes for training")
    result.add_argument("--held-out-percent", type=int, default=corpus.held_out_percent, help="of packages (%(default)s)")
    result.add_argument("--slices", action="store_true", help="also cut long slices with a horizon")
    result.add_argument("--context-length", type=int, default=slices.context_length, help="tokens a slice (%(default)s)")
    result.add_argument("--stride", type=int, default=slices.stride, help="tokens between slices (%(default)s)")
    result.add_argument("--horizon", type=int, default=slices.horizon, help="tokens after a slice (%(default)s)")
    return result


def run(args: argparse.Namespace) -> None:
    """Prepare, and say what came out."""
    corpus = CorpusConfig(roots=tuple(args.roots), held_out_percent=args.held_out_percent)
    cut = SliceConfig(context_length=args.context_length, stride=args.stride, horizon=args.horizon)
    if args.tokenizer is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(args.tokenizer))
    else:
        sample, folder = args.max_train_bytes or SAMPLE_BYTES, args.output / "tokenizer"
        tokenizer = make_tokenizer(corpus, vocab_size=args.vocab_size, max_bytes=sample, output=folder)
    manifest = prepare(corpus, tokenizer, args.output, max_train_bytes=args.max_train_bytes)
    for split, part in manifest["splits"].items():
        print(f"{split:10} {part['documents']:6} documents {part['blocks']:8} blocks {part['tokens']:10} tokens")
    print(f"dropped: {manifest['dropped']['leaks']} leaks, {manifest['dropped']['duplicates']} duplicates")
    if args.slices:
        for split, part in write_slices(args.output, args.output, cut)["splits"].items():
            print(f"{split:10} {part['slices']:6} slices of {cut.context_length} + {cut.horizon} tokens")


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where the input cannot be used."""
    try:
        run(parser().parse_args(argv))
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
