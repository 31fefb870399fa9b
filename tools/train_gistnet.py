"""Trains a GistNet for a frozen base: the same as ``megacontext train gist``. Resumes from its last checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from megacontext.errors import MegaContextError
from megacontext.training.commands import run_gist


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where the input cannot be used; prints the last evaluation as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_gistnet", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML, such as configs/gist.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field; may repeat")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    overrides = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in args.set)}
    try:
        print(json.dumps(run_gist(args.config, overrides, quiet=args.quiet), indent=1))
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
