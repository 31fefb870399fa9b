"""Bad input: one clear line, the right exit code, one JSON document, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Answer, Cli

from megacontext.cli import failures
from megacontext.engine.session import Session
from megacontext.errors import (
    BudgetError,
    CorruptCheckpoint,
    DivergedError,
    IngestError,
    InvariantError,
    ModelMismatch,
    StorageFull,
)


def check(answer: Answer, code: int, kind: str, *words: str) -> None:
    """A failed call with --json: its code, its one document, its one line."""
    assert answer.code == code, answer.err
    error = answer.json["error"]
    assert error["type"] == kind
    lines = answer.err.strip().splitlines()
    assert lines[-1] == f"error: {error['message']}" and "Traceback" not in answer.err
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("x"), 2),
        (IngestError("x"), 2),
        (StorageFull("x"), 3),
        (PermissionError(13, "Permission denied", "/x"), 3),
        (ModelMismatch("x"), 4),
        (CorruptCheckpoint("x"), 4),
        (DivergedError("x"), 4),
        (InvariantError("x"), 70),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert failures.exit_code(error) == code


@pytest.mark.parametrize("verb", ["status", "log", "fsck", "branch", "search x", "show main", "generate x", "add ."])
def test_no_memory(cli: Cli, verb: str) -> None:
    check(cli(*verb.split(), "--json"), 3, "MemoryNotFound", "megacontext init")
    check(cli("-C", "absent.mc", *verb.split(), "--json"), 3, "MemoryNotFound", "absent.mc")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["log", "nope"], "UnknownReference"),
        (["checkout", "nope"], "UnknownReference"),
        (["branch", "new", "nope"], "UnknownReference"),
        (["branch", "-d", "nope"], "UnknownReference"),
        (["branch", "-d", "main"], "InvalidInput"),
        (["branch", "main"], "InvalidInput"),
        (["branch", "a b"], "InvalidInput"),
        (["branch", "a", "-d", "b"], "InvalidInput"),
        (["show", "nope"], "UnknownReference"),
        (["show", ".py"], "UnknownReference"),
        (["show", "9:9"], "UnknownReference"),
        (["show", "99:99"], "UnknownReference"),
        (["search", "x", "--at", "nope"], "UnknownReference"),
        (["generate", "x", "--session", "a b"], "InvalidInput"),
        (["generate", "x", "--top-p", "0"], "ConfigError"),
        (["generate", "x", "--budget", "40"], "BudgetError"),
        (["generate", "x", "--budget", "100000"], "BudgetError"),
        (["focus", "x", "--budget", "40"], "BudgetError"),
        (["explain", "x", "--budget", "40"], "BudgetError"),
    ],
)
def test_bad_input(cli: Cli, memory: Path, words: list[str], kind: str) -> None:
    check(cli("-C", memory, *words, "--json"), 2, kind)
    branches = cli("-C", memory, "branch", "--json").json["branches"]
    assert [each["name"] for each in branches] == ["main"]


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["add"],
        ["status", "--frob"],
        ["generate", "x", "--policy", "magic"],
        ["search", "x", "-n", "0"],
        ["log", "a", "b"],
    ],
)
def test_bad_usage(cli: Cli, words: list[str]) -> None:
    check(cli(*words, "--json"), 2, "UsageError", "--help")
    assert cli(*words).out == ""


def test_sources_that_cannot_be_added(cli: Cli, memory: Path, tmp_path: Path) -> None:
    before = cli("-C", memory, "status", "--json").json
    (tmp_path / "binary.bin").write_bytes(b"\0\1\2" * 50)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 50)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    check(cli("-C", memory, "add", "absent", "--json"), 2, "InvalidInput", "absent does not exist")
    check(cli("-C", memory, "add", "absent", "gone", "--json"), 2, "InvalidInput", "absent, gone do not exist")
    check(cli("-C", memory, "add", "binary.bin", "--json"), 2, "InvalidInput", "binary")
    check(cli("-C", memory, "add", "latin.txt", "--json"), 2, "InvalidInput", "UTF-8", "byte 0")
    check(cli("-C", memory, "add", "empty.txt", "--json"), 2, "InvalidInput", "empty")
    check(cli("-C", memory, "add", "folder", "--json"), 2, "InvalidInput", "holds no files")
    check(cli("-C", memory, "add", "-", "--json", stdin=b"\xff\xfe"), 2, "InvalidInput", "UTF-8")
    assert cli("-C", memory, "status", "--json").json == before
    (tmp_path / "folder" / "good.txt").write_text("good")
    mixed = cli("-C", memory, "add", "folder", "binary.bin", "latin.txt", "empty.txt", "absent", "--json")
    assert mixed.code == 0 and mixed.json["documents"] == 1 and len(mixed.json["skipped"]) == 4


def test_text_that_is_not_utf8(cli: Cli, memory: Path) -> None:
    check(cli("-C", memory, "generate", "-", "--json", stdin=b"ab\xff"), 2, "InvalidInput", "byte 2")


def test_nothing_to_continue(cli: Cli, bundle: Path) -> None:
    cli("init", "--model", bundle)
    check(cli("generate", "--json"), 2, "ConfigError", "prompt")
    assert cli("generate", "x", "--max-new-tokens", "2").code == 0


def test_the_wrong_model(cli: Cli, memory: Path, other_bundle: Path, plain_base: Path, tmp_path: Path) -> None:
    check(cli("-C", memory, "generate", "x", "--model", other_bundle, "--json"), 4, "LayerBehind", "megacontext regist")
    check(cli("-C", memory, "add", ".", "--model", plain_base, "--json"), 4, "ModelMismatch")
    check(cli("-C", memory, "generate", "x", "--model", tmp_path, "--json"), 4, "ModelNotFound")
    check(cli("init", "n.mc", "--model", "./absent", "--json"), 4, "ModelNotFound")
    check(cli("init", "n.mc", "--model", "nobody/nothing", "--json"), 4, "ModelNotFound", "HF_HUB_OFFLINE")
    assert not (tmp_path / "n.mc").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["base", "gistnet", "lensnet"])
def test_a_corrupted_checkpoint(cli: Cli, memory: Path, tmp_path: Path, bundle: Path, part: str) -> None:
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    _cut(copy / part / "model.safetensors")
    check(cli("-C", memory, "generate", "x", "--model", copy, "--json"), 4, "CorruptCheckpoint", str(copy / part))
    check(cli("init", "n.mc", "--model", copy, "--json"), 4, "CorruptCheckpoint")
    assert cli("-C", memory, "fsck").code == 0


@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
def test_fsck_names_every_damaged_object(cli: Cli, memory: Path, damage: Callable[[Path], Any]) -> None:
    clean = cli("-C", memory, "fsck", "--json")
    assert clean.code == 0 and clean.json["clean"] and clean.json["damaged"] == []
    largest = max((memory / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    damage(largest)
    report = cli("-C", memory, "fsck", "--json")
    assert report.code == 1 and not report.json["clean"]
    assert largest.name in {each["name"] for each in report.json["damaged"]}
    text = cli("-C", memory, "fsck")
    assert text.code == 1 and largest.name in text.out


def test_reading_a_damaged_object_is_a_typed_error(cli: Cli, memory: Path) -> None:
    commit = cli("-C", memory, "status", "--json").json["commit"]
    _flip(memory / "objects" / commit[:2] / commit)
    check(cli("-C", memory, "status", "--json"), 3, "CorruptObject", commit)
    (memory / "megacontext.json").write_text("{")
    check(cli("-C", memory, "status", "--json"), 3, "CorruptObject", "megacontext.json")
    assert cli("-C", memory, "fsck").code == 1


def test_another_writer(cli: Cli, memory: Path) -> None:
    from megacontext.storage import Repository

    repository = Repository.open(memory)
    with repository.writer("main", layer=repository.snapshot().layer().spec):
        check(cli("-C", memory, "add", "-", "--json", stdin="x"), 3, "BranchLocked")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageFull("the disk is full"), RuntimeError("odd")])
def test_sessions_are_dropped_however_they_end(
    cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Session) -> None:
        raise error

    monkeypatch.setattr(Session, "logits", fail)
    code = failures.exit_code(error)
    check(cli("-C", memory, "generate", "x", "--json"), code, type(error).__name__)
    kept = cli("-C", memory, "generate", "x", "--session", "kept")
    assert kept.code == code and "error: " in kept.err
    branches = cli("-C", memory, "branch", "--json").json["branches"]
    assert [each["name"] for each in branches] == ["main", "sessions/kept"]


def test_a_traceback_only_when_asked_for(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in cli("-C", memory, "log", "nope").err
    monkeypatch.setenv("MEGACONTEXT_DEBUG", "1")
    answer = cli("-C", memory, "log", "nope", "--json")
    assert answer.code == 2 and "Traceback" in answer.err and answer.json["error"]["type"] == "UnknownReference"
