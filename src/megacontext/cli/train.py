"""megacontext train: from a corpus to a LensNet, one step each."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.verb import Call, verb
from megacontext.errors import ConfigError

train = typer.Typer(
    help="Train the parts: a tokenizer, a small base model, a GistNet and a LensNet for a base.\n\n"
    "Each run is described by a YAML file (see configs/), can be interrupted, and goes on where it was when it is "
    "started again.",
    no_args_is_help=True,
)

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The run as YAML; see configs/.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one field of the configuration, such as steps=200 or shape.width=128; may be repeated. Wins over "
        "the file and over MEGACONTEXT_<FIELD> in the environment.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Run = Callable[..., dict[str, Any]]


def overrides(given: list[str]) -> dict[str, Any]:
    """`key=value` pairs, values read as YAML; raises ConfigError."""
    import yaml

    result = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set takes KEY=VALUE, not {each!r}")
        try:
            result[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {each}: the value is not valid YAML") from error
    return result


def _run(call: Call, run: Run, config: Path, changes: list[str] | None, quiet: bool) -> None:
    # Libraries that print while they train must not get between the lines of a JSON document.
    with contextlib.redirect_stdout(sys.stderr):
        result = run(config, overrides(changes or []), quiet=quiet)
    call.show(result, lambda: output.facts((key, _plain(value)) for key, value in result.items()))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@verb(train, "tokenizer", "megacontext train tokenizer --config configs/tokenizer.yaml")
def tokenizer(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train a byte-level BPE tokenizer on the training part of a corpus."""
    from megacontext.training.commands import run_tokenizer

    _run(call, run_tokenizer, config, changes, quiet)


@verb(train, "base", "megacontext train base --config configs/base.yaml --set steps=200")
def base(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train a small language model from scratch."""
    from megacontext.training.commands import run_base

    _run(call, run_base, config, changes, quiet)


@verb(train, "native", "megacontext train native --config configs/native.yaml")
def native(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Go on training a language model together with a GistNet, so that it learns to read gists."""
    from megacontext.training.commands import run_native

    _run(call, run_native, config, changes, quiet)


@verb(train, "gist", "megacontext train gist --config configs/gist.yaml")
def gist(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train a GistNet for a frozen language model: 32 tokens become one gist that stands for them."""
    from megacontext.training.commands import run_gist

    _run(call, run_gist, config, changes, quiet)


@verb(train, "reconstruct", "megacontext train reconstruct --config configs/reconstruct.yaml")
def reconstruct(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train a GistNet so that the 32 tokens can be read back from its vector, and measure how many are."""
    from megacontext.training.commands import run_reconstruct

    _run(call, run_reconstruct, config, changes, quiet)


@verb(train, "lens", "megacontext train lens --config configs/lens.yaml")
def lens(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train a LensNet: it learns, from measured gains, which blocks are worth reading in full."""
    from megacontext.training.commands import run_lens

    _run(call, run_lens, config, changes, quiet)


@verb(train, "dense", "megacontext train dense --config configs/dense.yaml")
def dense(call: Call, config: Config, changes: Set = None, quiet: Quiet = False) -> None:
    """Train the dense retriever that bench quality compares with: a small bi-encoder of blocks and what follows them."""
    from megacontext.training.commands import run_dense

    _run(call, run_dense, config, changes, quiet)
