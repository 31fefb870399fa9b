"""``python -m tools.prepare_dataset``: any folders, one JSON document, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus_files import PERCENT, name_in, small_corpus

from megacontext.testing.tiny_models import CONTEXT, save_tiny
from megacontext.training.dataset import hash_file
from tools.prepare_dataset import main

HELD_OUT = ["--held-out-percent", str(PERCENT)]


def test_one_json_document_with_counts_and_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_corpus(tmp_path)
    sizes = ["--vocab-size", "300", "--slices", "--context-length", "256", "--stride", "128"]
    assert main(["--roots", str(root), "--output", str(tmp_path / "data"), "--json", *HELD_OUT, *sizes]) == 0
    shown = capsys.readouterr()
    manifest = json.loads(shown.out)
    assert manifest["seen"] == {"files": 16} and 257 < manifest["vocab_size"] <= 300
    assert manifest["dropped"] == {"identical": 0, "leaks": 0, "duplicates": 0}
    for split, part in manifest["splits"].items():
        assert part["sha256"] == hash_file(tmp_path / "data" / f"{split}.safetensors")
        assert manifest["slices"]["splits"][split]["slices"] > 0
    assert manifest["documents"]["sha256"] == hash_file(tmp_path / "data" / "documents.jsonl")
    assert "writing blocks" in shown.err and "16/16" in shown.err


def test_roots_add_up_and_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = small_corpus(tmp_path / "one"), small_corpus(tmp_path / "two")
    for path in two.rglob("*.py"):
        path.write_text(path.read_text().replace("value_", "other_").replace("call(", "ask("))
    arguments = [str(one), "--roots", str(two), str(one), "--output", str(tmp_path / "data"), "--json", "--quiet"]
    assert main([*arguments, "--vocab-size", "300", *HELD_OUT]) == 0
    shown = capsys.readouterr()
    manifest = json.loads(shown.out)
    assert manifest["seen"] == {"files": 32} and sum(manifest["dropped"].values()) == 0
    assert shown.err == ""


def test_preparing_for_a_base_takes_its_tokenizer_and_checks_its_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, base = small_corpus(tmp_path), save_tiny(tmp_path / "base")
    arguments = ["--roots", str(root), "--output", str(tmp_path / "data"), "--base", str(base), "--json", "--slices", *HELD_OUT]
    too_long = [*arguments, "--context-length", str(CONTEXT), "--stride", "128"]
    assert main(too_long) == 2
    assert f"take {CONTEXT + 63} positions, but the base was made for {CONTEXT}" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([*arguments, "--context-length", str(CONTEXT - 64), "--stride", "128"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 258


def test_what_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary, few = tmp_path / "binary", tmp_path / "few"
    for folder, data in ((binary, bytes(1000)), (few, b"x = 1\n" * 100)):
        (folder / name_in("train")).mkdir(parents=True)
        (folder / name_in("train") / "a.py").write_bytes(data)
    cases = [
        (["--roots", str(tmp_path / "absent")], "absent is not a folder"),
        (["--roots", str(binary)], "of 1 files named .py, 1 are binary or not UTF-8"),
        (["--roots", str(few)], "the validation split is empty"),
        (["--environment", str(few)], "few holds no Python environment"),
        (["--roots", str(few), "--suffixes", ".md"], "no files named .md"),
        (["--roots", str(few), "--tokenizer", str(binary)], "holds no tokenizer that can be read"),
        (["--roots", str(few), "--slices", "--base", str(binary)], "is no model that can be read here"),
    ]
    for arguments, complaint in cases:
        assert main([*arguments, "--output", str(tmp_path / "data"), "--quiet", *HELD_OUT]) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
