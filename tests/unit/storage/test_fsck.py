from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import SPEC, Gister, add, create, ids_of, say

from megacontext.errors import FormatVersionError, MemoryNotFound
from megacontext.storage import Repository
from megacontext.storage.fsck import check
from megacontext.storage.hashing import sealed, unsealed


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory with everything in it: history, tags, branches, an open document, a journal, originals."""
    path = tmp_path_factory.mktemp("fsck") / "m"
    repository, gister = create(path, tokenizer_files={"tokenizer.json": b"{}"}), Gister()
    with repository.writer(layer=SPEC) as writer:
        for number in range(34):
            add(writer, f"d{number}", 2, gister, last=9)
        writer.begin_document(source="raw")
        writer.append_blocks(ids_of("raw", 1), gists=gister.add(ids_of("raw", 1)))
        writer.end_document(original=b"\xff raw")
        writer.commit("one")
        repository.create_tag("v1")
        repository.create_branch("other")
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(50, dtype=np.uint32), gister)
        writer.commit("two")
        say(writer, np.arange(50, dtype=np.uint32), gister)
    with repository.writer("other") as writer:
        add(writer, "side", 3)
        writer.begin_document(source="unfinished", text_hash="h")
        writer.append_blocks(ids_of("u", 2))
    report = repository.fsck()
    assert report.clean and report.notes == () and report.objects >= 30 and report.bytes > 10_000
    return path


def checked_files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file() and each.parent.name != "locks")


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_every_flipped_bit_is_found_and_named(memory: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(checked_files(memory)))
    content = path.read_bytes()
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        report = check(memory)
    finally:
        path.write_bytes(content)
    assert any(path.name in finding.name for finding in report.findings), report


@pytest.mark.parametrize("how", ["truncated", "removed"])
def test_every_truncated_or_missing_file_is_found(memory: Path, tmp_path: Path, how: str) -> None:
    """A journal may end anywhere: what a torn write left was never acknowledged. It may also be missing."""
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    for path in checked_files(copy):
        content = path.read_bytes()
        if path.suffix == ".wal" or (how == "removed" and path.name in ("megacontext.json", "v1", "other")):
            continue
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(content[:-1])
        report = check(copy)
        assert any(path.name in finding.name for finding in report.findings), (path, report)
        path.write_bytes(content)
    assert check(copy).clean


def test_a_finding_says_what_is_lost(memory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    repository = Repository.open(copy)
    record = repository.snapshot().documents.find("raw")[0]
    (copy / "objects" / record.original[:2] / record.original).write_bytes(b"other")
    (finding,) = repository.fsck().findings
    assert (finding.name, finding.kind) == (record.original, "original")
    assert "the original of raw" in finding.meaning and record.original in str(finding)


def test_a_torn_write_is_a_note_and_leftovers_too(memory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    with (copy / "journal/main.wal").open("ab") as file:
        file.write(b"\1\2\3")
    (copy / "staging/main").mkdir(parents=True, exist_ok=True)
    (copy / "staging/main/x").write_bytes(b"half")
    (copy / "objects/aa").mkdir(exist_ok=True)
    (copy / "objects/aa/stray").write_bytes(b"")
    report = Repository.open(copy).fsck()
    assert report.clean and len(report.notes) == 3
    assert "never acknowledged" in " ".join(report.notes)


def test_a_damaged_info_file_does_not_blame_the_objects(memory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    (copy / "megacontext.json").write_bytes(b"{}")
    report = check(copy)
    assert [finding.kind for finding in report.findings] == ["info"]
    assert report.objects >= 30 and "only hashes" in report.notes[0]


def test_unused_objects_are_counted_and_checked_too(memory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    repository = Repository.open(copy)
    with repository.writer("other") as writer:
        name = writer.commit()
    repository.delete_branch("other")
    report = repository.fsck()
    assert report.clean and report.unreachable > 3
    (copy / "objects" / name[:2] / name).write_bytes(b"")
    (finding,) = repository.fsck().findings
    assert finding.name == name and "nothing that is whole refers to it" in finding.meaning


def test_refs_and_journals_must_fit_each_other(memory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(memory, copy)
    tag = (copy / "refs/tags/v1").read_bytes()
    (copy / "refs/heads/main").write_bytes(tag)
    findings = Repository.open(copy).fsck().findings
    assert any("does not continue commit" in each.meaning for each in findings)
    (copy / "refs/heads/main").unlink()
    meanings = " ".join(each.meaning for each in Repository.open(copy).fsck().findings)
    assert "no readable branch main" in meanings and "current branch main is not there" in meanings


def test_no_memory_and_a_newer_one_are_errors(memory: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound):
        check(tmp_path)
    (tmp_path / "megacontext.json").write_bytes(sealed({**unsealed((memory / "megacontext.json").read_bytes()), "format": 7}))
    with pytest.raises(FormatVersionError):
        check(tmp_path)
