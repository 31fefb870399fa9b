"""The audit log: whole, or told where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import CorruptObject, StorageFull
from megacontext.storage import Repository, audit
from megacontext.testing.faults import Fate, Faults


def filled(root: Path, count: int = 4) -> Path:
    for number in range(count):
        audit.append(root, "gc", {"objects": number}, author="me", time=float(number))
    return audit.path(root)


def test_lines_follow_each_other(tmp_path: Path) -> None:
    filled(tmp_path)
    chain = audit.read(tmp_path)
    assert (chain.wrong, chain.torn, len(chain.entries)) == ("", 0, 4)
    assert chain.entries[0].before == audit.START and chain.entries[-1].hash == chain.head
    assert [entry.before for entry in chain.entries[1:]] == [entry.hash for entry in chain.entries[:-1]]
    assert [dict(entry.details) for entry in chain.entries] == [{"objects": number} for number in range(4)]


def test_an_empty_memory_has_an_empty_log(tmp_path: Path) -> None:
    assert audit.read(tmp_path) == audit.Chain(entries=())
    assert audit.read(tmp_path).head == audit.START
    with pytest.raises(ValueError, match="sing"):
        audit.append(tmp_path, "sing")


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("audit")
    log = filled(root, 3)
    data = bytearray(log.read_bytes())
    data[at % len(data)] ^= 1 << bit
    log.write_bytes(data)
    chain = audit.read(root)
    assert chain.wrong or chain.torn
    assert len(chain.entries) < 3


@pytest.mark.parametrize("drop", [0, 1, 2])
def test_a_line_taken_out_is_found_and_nothing_is_added_behind_it(tmp_path: Path, drop: int) -> None:
    log = filled(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:drop] + lines[drop + 1 :]))
    assert f"line {drop + 1} " in audit.read(tmp_path).wrong
    with pytest.raises(CorruptObject, match="--verify"):
        audit.append(tmp_path, "gc")


def test_a_line_rewritten_with_its_own_hash_breaks_the_next(tmp_path: Path) -> None:
    log = filled(tmp_path)
    lines = log.read_bytes().splitlines()
    value = json.loads(lines[1])
    value.pop("hash")
    value["author"] = "somebody else"
    value["hash"] = audit.digest(audit.canonical(value))
    lines[1] = audit.canonical(value)
    log.write_bytes(b"\n".join(lines) + b"\n")
    assert "line 3 " in audit.read(tmp_path).wrong


@pytest.mark.parametrize("cut", [1, 17])
def test_a_torn_line_was_never_said(tmp_path: Path, cut: int) -> None:
    log = filled(tmp_path)
    log.write_bytes(log.read_bytes()[:-cut])
    chain = audit.read(tmp_path)
    assert len(chain.entries) == 3 and chain.torn and not chain.wrong
    audit.append(tmp_path, "repack")
    again = audit.read(tmp_path)
    assert [entry.act for entry in again.entries] == ["gc", "gc", "gc", "repack"] and not again.torn


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with pytest.raises(StorageFull), Faults(Fate.FULL, 1).installed():
        audit.append(tmp_path, "gc")
    assert len(audit.read(tmp_path).entries) == 2
    audit.append(tmp_path, "gc")
    assert len(audit.read(tmp_path).entries) == 3


def test_fsck_looks_at_it(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc")
    log = filled(repository.root)
    assert repository.fsck().clean
    log.write_bytes(log.read_bytes().replace(b'"objects":2', b'"objects":3'))
    assert [finding.kind for finding in repository.fsck().findings] == ["audit log"]
