"""``megacontext bench quality``: the arms and their controls on held-out documents, as one JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from megacontext.errors import ConfigError

if TYPE_CHECKING:
    from megacontext.engine.bundle import Bundle
    from megacontext.evaluation.suite import QualityConfig, Source
    from megacontext.models.bi_encoder import BiEncoder

QUICK: dict[str, Any] = {"items": 8, "oracle_items": 2, "lod2_items": 4, "lod3_items": 0, "budgets": ("1/4",)}
"""What ``--quick`` sets: small enough for CI, too small to say anything about a model."""

bench = typer.Typer(no_args_is_help=True, help="Measure quality and storage, beside the controls that could expose a figure.")


@bench.command("quality", epilog="Example:\n\nmegacontext bench quality --json benchmarks/quality.json --items 300")
def bench_quality(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    items: Annotated[int, typer.Option(min=2, help="How many items.")] = 300,
    model: Annotated[str, typer.Option(help="'bundled', a bundle's folder, a base's folder or hub id.")] = "bundled",
    gistnet: Annotated[Path | None, typer.Option(help="A GistNet to measure instead of the bundle's.")] = None,
    lens: Annotated[str | None, typer.Option(help="A LensNet to measure instead of the bundle's, or 'none'.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A folder whose subfolders are the held-out histories.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A prepared dataset: a held-out split of it, checked against its training split.")
    ] = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="The prepared dataset that the models learned from: items that it holds are refused.")
    ] = None,
    split: Annotated[str, typer.Option(help="With --dataset: validation (for choices) or test (for reporting).")] = "test",
    far: Annotated[int | None, typer.Option(help="Tokens of far context; default: what the base can read raw.")] = None,
    renewal: Annotated[int, typer.Option(min=1, help="Tokens between two choices of the arms that choose.")] = 16,
    renewals: Annotated[str, typer.Option(help="Further intervals, such as 64,32,8.")] = "",
    renewal_items: Annotated[int, typer.Option(min=1, help="On how many of the items --renewals are compared.")] = 64,
    intervals_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A result on validation items with --renewals: each arm is renewed at the interval that was best there.",
        ),
    ] = None,
    dense: Annotated[Path | None, typer.Option(help="The bi-encoder of the arm dense; default: the bundle's.")] = None,
    arms: Annotated[str, typer.Option(help="Only these arms, such as gist,swapped,recency; default: all.")] = "",
    oracle: Annotated[int, typer.Option(min=0, help="On how many of the items the oracle runs.")] = 64,
    levels: Annotated[
        tuple[int, int], typer.Option(min=0, metavar="N N", help="How many items of their own LOD2 and LOD3 get.")
    ] = (64, 24),
    seed: Annotated[int, typer.Option(help="Seed of the items and the intervals.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few items, for CI.")] = False,
) -> None:
    """Measure what the window carries of the far past, beside every control that could expose it.

    Without --documents or --dataset: the packages of this Python's standard library that no training saw.
    """
    from megacontext.evaluation.suite import QualityConfig
    from megacontext.evaluation.tables import quality_markdown

    chosen: dict[str, Any] = {
        **{"items": items, "far": far, "seed": seed, "renewal": renewal, "oracle_items": oracle},
        **{"lod2_items": levels[0], "lod3_items": levels[1], "renewals": _numbers(renewals), "arms": _words(arms)},
        **{"renewal_items": renewal_items, "own": _own(intervals_from)},
    }
    config = QualityConfig(**{**chosen, **(QUICK if quick else {})})
    bundle = load_parts(model, gistnet=gistnet, lens=lens)
    source = source_of(bundle, documents=documents, dataset=dataset, split=split, trained_on=trained_on)
    encoder = dense_of(model, dense, bundle)
    result = run_quality(bundle, source, config, gistnet=gistnet or gistnet_folder(model), dense=encoder)
    result["config"]["model"] = "bundled" if model == "bundled" else Path(model).name
    result["quick"] = quick
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    Console(highlight=False).print(quality_markdown(result), markup=False, soft_wrap=True)


def run_quality(
    bundle: Bundle, source: Source, config: QualityConfig, *, gistnet: Path, dense: BiEncoder | None = None
) -> dict[str, Any]:
    """The result in the form of BENCHMARKS §4, with its environment; progress goes to stderr.

    ``gistnet``: the folder that the bundle's GistNet is from; a head that reads gists back may lie beside it. ``dense``: the
    bi-encoder of that arm.
    """
    from megacontext.evaluation.reconstruction import load_head
    from megacontext.evaluation.suite import run
    from megacontext.training.progress import counted

    head = load_head(gistnet, bundle.gists, bundle.base) if bundle.gists is not None else None
    found = run(bundle, source, config, counted, head=head, dense=dense)
    return {"schema": found.pop("schema"), "kind": found.pop("kind"), "environment": environment(), **found}


def load_parts(model: str, *, gistnet: Path | None, lens: str | None) -> Bundle:
    """The bundle, with another GistNet or LensNet where one is named; ModelMismatch where they were not made for each other.

    Another GistNet leaves the bundle's LensNet out, since that one was trained for other gists.
    """
    from dataclasses import replace

    from megacontext.engine.bundle import load_bundle
    from megacontext.errors import ModelMismatch
    from megacontext.models import LensNet
    from megacontext.models.encoders import load_gistnet

    bundle = load_bundle(model)
    if gistnet is not None:
        found = load_gistnet(gistnet, base_fingerprint=bundle.base.fingerprint)
        bundle = replace(bundle, gists=found, lens=None)
    if lens == "none":
        return replace(bundle, lens=None)
    if lens is not None:
        net = LensNet.from_pretrained(lens, base_fingerprint=bundle.base.fingerprint)
        if bundle.gists is None or net.config.gist_fingerprint != bundle.gists.fingerprint:
            raise ModelMismatch(f"the LensNet in {lens} was trained for another GistNet: run megacontext train lens")
        bundle = replace(bundle, lens=net)
    return bundle


def dense_of(model: str, folder: Path | None, bundle: Bundle) -> BiEncoder | None:
    """The bi-encoder in ``folder``, or that in the bundle's ``dense``, if any; ModelMismatch for another base's."""
    from megacontext.models.bi_encoder import BiEncoder

    own = gistnet_folder(model).with_name("dense")
    if folder is None and not own.is_dir():
        return None
    return BiEncoder.from_pretrained(folder or own, base_fingerprint=bundle.base.fingerprint)


def _own(file: Path | None) -> dict[str, int]:
    """The best intervals of the arms by a result on validation items."""
    from megacontext.evaluation.suite import best_intervals

    if file is None:
        return {}
    result = json.loads(file.read_text(encoding="utf-8"))
    if result.get("config", {}).get("source") == "test split":
        raise ConfigError(f"{file} was measured on test items: choose intervals on validation items (--split validation)")
    return best_intervals(result)


def gistnet_folder(model: str) -> Path:
    """Where a bundle's GistNet lies."""
    from megacontext.engine.bundle import BUNDLED, bundled_folder

    return (bundled_folder() if model == BUNDLED else Path(model)) / "gistnet"


def source_of(
    bundle: Bundle, *, documents: Path | None, dataset: Path | None, split: str, trained_on: Path | None = None
) -> Source:
    """The held-out histories: of a prepared dataset, of a folder, or of this Python's standard library.

    They are checked against the training split of ``trained_on``, or of ``dataset`` itself.
    """
    from megacontext.evaluation.suite import Source
    from megacontext.training.corpus import CorpusConfig, collect
    from megacontext.training.dataset import load_split
    from megacontext.training.held_out import held_out_histories, joined

    tokenizer = bundle.tokenizer
    trained_on = trained_on or dataset
    training = None
    if trained_on is not None:
        _check_vocabulary(trained_on, tokenizer)
        train = load_split(trained_on, "train")
        training = (train.ids, train.fill)
    if dataset is not None:
        if documents is not None:
            raise ConfigError("--documents and --dataset name two sources: choose one")
        if split not in ("validation", "test"):
            raise ConfigError(f"--split is validation or test, not {split}: what was trained on proves nothing")
        _check_vocabulary(dataset, tokenizer)
        histories = load_split(dataset, "test" if split == "test" else "validation").histories()
        name = f"{split} split"
    elif documents is not None:
        by_package: dict[str, list[str]] = {}
        for file in collect(CorpusConfig(roots=(str(documents),), suffixes=(".py", ".md", ".txt", ".rst"))):
            by_package.setdefault(file.package, []).append(file.text)
        histories, name = [joined(texts, tokenizer) for texts in by_package.values()], "documents"
    else:
        histories, name = held_out_histories(tokenizer), "test packages of the standard library"
    return Source(histories=histories, closed_by=tokenizer.eos_token_id, name=name, training=training)


def _check_vocabulary(dataset: Path, tokenizer: Any) -> None:
    """ConfigError where a dataset holds the ids of another tokenizer."""
    from megacontext.training.dataset import read_manifest

    vocabulary = read_manifest(dataset)["vocab_size"]
    if vocabulary != len(tokenizer):
        raise ConfigError(
            f"{dataset} was prepared with a tokenizer of {vocabulary} tokens, the model's has {len(tokenizer)}: prepare "
            "it again with the model's tokenizer"
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError as error:
        raise ConfigError(f"renewal intervals are whole numbers with commas between, such as 64,32,8; not {text!r}") from error


def environment() -> dict[str, Any]:
    """Machine, versions, threads and commit: what a figure needs to be believed."""
    import torch
    import transformers

    import megacontext

    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip() if found.returncode == 0 else ""
    except OSError:
        commit = ""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "megacontext": megacontext.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit,
    }


# Measurements in files of their own register themselves.
from megacontext.cli import bench_capacity as bench_capacity  # noqa: E402
from megacontext.cli import bench_recall as bench_recall  # noqa: E402
from megacontext.cli import bench_speed as bench_speed  # noqa: E402
from megacontext.cli import bench_storage as bench_storage  # noqa: E402
