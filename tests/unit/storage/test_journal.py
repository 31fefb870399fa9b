from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext.errors import CorruptObject, StorageError
from megacontext.storage.hashing import digest
from megacontext.storage.journal import Journal, Record, RecordKind, read_journal

BASE, NEXT = digest(b"base"), digest(b"next")


def record(number: int, kind: RecordKind = RecordKind.BLOCKS, **metadata: str) -> Record:
    return Record(kind, {"number": str(number), **metadata}, {"ids": np.full(number, number, np.uint32)})


def written(path: Path, records: list[Record]) -> list[int]:
    """A journal with these records; the sizes of the file after each."""
    journal = Journal(path, BASE, None)
    sizes = [path.stat().st_size]
    for each in records:
        journal.append(each)
        sizes.append(path.stat().st_size)
    journal.sync()
    journal.close()
    return sizes


def numbers(path: Path) -> list[int]:
    content = read_journal(path)
    assert content is not None
    return [int(frame.parse().metadata["number"]) for frame in content.frames]


def test_no_file_is_no_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "x.wal") is None


def test_a_cut_anywhere_leaves_the_whole_records_before(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    sizes = written(path, [record(1), record(2), record(3)])
    data = path.read_bytes()
    for cut in range(sizes[0], len(data), 3):
        path.write_bytes(data[:cut])
        kept = sum(size <= cut for size in sizes) - 1
        assert numbers(path) == list(range(1, kept + 1))
        content = read_journal(path)
        assert content is not None and content.torn == cut - sizes[kept]
        journal = Journal(path, BASE, content)
        journal.append(record(9))
        journal.close()
        assert numbers(path) == [*range(1, kept + 1), 9]


def test_a_file_grown_but_not_filled_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    sizes = written(path, [record(1), record(2)])
    data = path.read_bytes()
    for filled in (sizes[1], sizes[1] + 12, sizes[1] + 40, sizes[2] - 8):
        path.write_bytes(data[:filled] + bytes(sizes[2] - filled + 5))
        assert numbers(path) == [1]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    written(path, [record(1), record(2)])
    data = path.read_bytes()
    for at in range(len(data)):
        # All bits of the structure, one of each byte of the content.
        for bit in range(8) if at < 60 or at > len(data) - 60 else [at % 8]:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with pytest.raises(CorruptObject, match=r"x\.wal"):
                read_journal(path)


def test_a_record_taken_out_or_moved_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    a, b, c, d = written(path, [record(1), record(2), record(3)])
    data = path.read_bytes()
    for damaged in (data[:a] + data[b:], data[:b] + data[c:], data[:a] + data[b:c] + data[a:b] + data[c:d]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptObject):
            read_journal(path)


@pytest.mark.parametrize("size", range(44))
def test_a_journal_without_its_header_is_damaged(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.wal"
    written(path, [])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptObject, match=r"header|first"):
        read_journal(path)


def test_a_commit_mark_carries_only_the_unfinished_document(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    kinds = RecordKind
    written(
        path,
        [
            record(1, kinds.BEGIN),
            record(2),
            record(3, kinds.END),
            record(4, kinds.BEGIN),
            record(5),
            record(6, kinds.COMMIT, commit=NEXT),
            record(7),
        ],
    )
    content = read_journal(path)
    assert content is not None

    def live(head: str) -> list[int] | None:
        frames = content.live(head)
        return None if frames is None else [int(frame.parse().metadata["number"]) for frame in frames]

    assert live(BASE) == [1, 2, 3, 4, 5, 7]
    assert live(NEXT) == [4, 5, 7]
    assert live(digest(b"elsewhere")) is None


def test_an_open_document_is_in_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "x.wal"
    kinds = RecordKind
    mark = record(3, kinds.COMMIT, commit=NEXT)
    written(path, [record(1, kinds.BEGIN, open="1"), record(2, kinds.TOKENS), mark, record(4, kinds.TOKENS)])
    content = read_journal(path)
    assert content is not None and [frame.offset for frame in content.live(NEXT) or []] == [content.frames[3].offset]


def test_a_journal_whose_sync_failed_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    journal = Journal(tmp_path / "x.wal", BASE, None)
    journal.append(record(1))
    monkeypatch.setattr("os.fdatasync", fail)
    with pytest.raises(StorageError, match="Input/output"):
        journal.sync()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="open the branch for writing again"):
        journal.append(record(2))
    journal.close()
