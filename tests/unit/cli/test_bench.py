"""``megacontext bench quality`` on a tiny bundle: where items come from, which parts are measured, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Cli

from megacontext.models import BaseLM
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.testing.tiny_models import EOS, VOCAB, byte_tokenizer
from megacontext.training.corpus import SourceFile, Split
from megacontext.training.dataset import write_manifest, write_split

FEW = ("--items", "3", "--far", "64", "--oracle", "1", "--levels", "0", "0")


def text_of(seed: int, lines: int = 60) -> str:
    rng = random.Random(seed)
    names = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(8)]
    return "".join(f"{rng.choice(names)} = {rng.choice(names)}({rng.randrange(999)})\n" for _ in range(lines))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    root = tmp_path / "held-out"
    for package in range(3):
        (root / f"package{package}").mkdir(parents=True)
        for number in range(2):
            (root / f"package{package}" / f"m{number}.py").write_text(text_of(10 * package + number))
    return root


def dataset_of(folder: Path, *, train: list[str], test: list[str], vocab_size: int = VOCAB) -> Path:
    """A prepared dataset whose packages hold one document each."""
    folder.mkdir()
    tokenizer = byte_tokenizer()
    splits: dict[Split, list[str]] = {"train": train, "validation": test[:1], "test": test}
    parts = {}
    for split, texts in splits.items():
        files = [
            SourceFile(package=f"{split}/{n}", name=f"{n}.py", path=Path(f"{n}.py"), text=text) for n, text in enumerate(texts)
        ]
        parts[split], _ = write_split(
            split,
            files,
            lambda given: tokenizer(given)["input_ids"],
            eos=EOS,
            vocab_size=vocab_size,
            path=folder / f"{split}.safetensors",
        )
    write_manifest(folder, {"vocab_size": vocab_size, "splits": parts})
    return folder


def result_of(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text())
    assert isinstance(value, dict)
    return value


def test_documents_of_a_folder(cli: Cli, bundle: Path, documents: Path, tmp_path: Path) -> None:
    answer = cli("bench", "quality", "--json", "out/q.json", "--model", bundle, "--documents", documents, *FEW)
    assert answer.code == 0 and "MegaContext (LensNet)" in answer.out and "Gate: " in answer.out
    result = result_of(tmp_path / "out" / "q.json")
    assert result["kind"] == "quality" and result["config"]["source"] == "documents" and not result["quick"]
    assert result["config"]["items"] == 3 and result["config"]["far"] == 64
    assert {"machine", "python", "torch", "threads", "commit"} <= set(result["environment"])
    assert str(tmp_path) not in json.dumps(result)


def test_which_parts_are_measured(cli: Cli, bundle: Path, other_bundle: Path, documents: Path, tmp_path: Path) -> None:
    def run(*words: str | Path) -> dict[str, Any]:
        answer = cli(
            "bench", "quality", "--json", "q.json", "--documents", documents, "--arms", "gist,megacontext", *FEW, *words
        )
        assert answer.code == 0, answer.err
        return result_of(tmp_path / "q.json")

    own = run("--model", bundle)
    assert "megacontext" in own["budgets"]["1/4"]["arms"]
    assert "megacontext" not in run("--model", bundle, "--lens", "none")["budgets"]["1/4"]["arms"]
    again = run("--model", bundle / "base", "--gistnet", bundle / "gistnet", "--lens", bundle / "lensnet")
    assert again["arms"] == own["arms"] and again["budgets"] == own["budgets"]
    # The bundle's own LensNet was trained for other gists.
    alone = run("--model", bundle, "--gistnet", bundle / "gistnet")
    assert alone["arms"] == own["arms"] and "megacontext" not in alone["budgets"]["1/4"]["arms"]
    foreign = ("--model", bundle, "--gistnet", other_bundle / "gistnet")
    answer = cli("bench", "quality", "--json", "q.json", "--documents", documents, *FEW, *foreign)
    assert answer.code == 4 and "was trained for the base model" in answer.err
    answer = cli("bench", "quality", "--json", "q.json", "--model", bundle, "--lens", other_bundle / "lensnet", *FEW)
    assert answer.code == 4 and "was trained for the base model" in answer.err


def test_a_split_is_checked_against_the_training_text(cli: Cli, bundle: Path, documents: Path, tmp_path: Path) -> None:
    test = [text_of(seed) for seed in (100, 101, 102)]
    clean = dataset_of(tmp_path / "clean", train=[text_of(seed) for seed in (201, 202)], test=test)
    common = ("bench", "quality", "--json", "q.json", "--model", bundle, "--arms", "gist", *FEW)
    assert cli(*common, "--dataset", clean).code == 0
    result = result_of(tmp_path / "q.json")
    assert result["config"]["overlap"]["checked"] and result["config"]["source"] == "test split"
    assert cli(*common, "--dataset", clean, "--split", "validation").code == 0
    assert result_of(tmp_path / "q.json")["config"]["source"] == "validation split"
    leaked = dataset_of(tmp_path / "leaked", train=[text_of(1), *test], test=test)
    answer = cli(*common, "--dataset", leaked)
    assert answer.code == 4 and "are made of text that the training split holds" in answer.err
    seen = dataset_of(tmp_path / "seen", train=[path.read_text() for path in sorted(documents.rglob("*.py"))], test=test)
    answer = cli(*common, "--documents", documents, "--trained-on", seen)
    assert answer.code == 4 and "are made of text that the training split holds" in answer.err
    assert cli(*common, "--documents", documents, "--trained-on", clean).code == 0


def test_bad_input_says_what_to_do(cli: Cli, bundle: Path, documents: Path, tmp_path: Path) -> None:
    def refused(*words: str | Path) -> str:
        answer = cli("bench", "quality", "--json", "q.json", "--model", bundle, *FEW, *words)
        assert answer.code in (2, 4) and not (tmp_path / "q.json").exists()
        return answer.err

    other = dataset_of(tmp_path / "other", train=[text_of(1)], test=[text_of(2)], vocab_size=1000)
    assert "tokenizer of 1000 tokens" in refused("--dataset", other)
    assert "choose one" in refused(
        "--dataset", dataset_of(tmp_path / "d", train=["x" * 99], test=["y"]), "--documents", documents
    )
    assert "validation or test" in refused("--dataset", tmp_path / "d", "--split", "train")
    assert "no prepared dataset" in refused("--dataset", tmp_path / "nowhere")
    assert "no arm named gits" in refused("--documents", documents, "--arms", "gits")
    assert "whole numbers" in refused("--documents", documents, "--renewals", "16;8")
    assert "no history holds" in refused("--documents", documents, "--far", "96000", "--arms", "gist")
    assert "is not a folder" in refused("--documents", tmp_path / "nowhere")


def test_quick_is_marked(cli: Cli, documents: Path, tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "bundle")
    assert BaseLM.from_pretrained(bundle / "base").context_length == 512
    answer = cli("bench", "quality", "--json", "q.json", "--model", bundle, "--documents", documents, "--quick")
    assert answer.code == 0
    result = result_of(tmp_path / "q.json")
    assert result["quick"] and result["config"]["items"] == 8
