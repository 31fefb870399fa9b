"""The list of what may not come in again."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.errors import CorruptObject
from megacontext.storage import audit
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.erased import FILE, ErasedList, door, load_erased, readmit, save_erased, take_in


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "locks").mkdir()
    save_erased(tmp_path, ErasedList().with_erased(["file:secret.txt"], ["1234", ""]))
    return tmp_path


def test_names_and_texts_are_refused_and_not_told(root: Path) -> None:
    erased = load_erased(root)
    assert "name" in erased.reason("file:secret.txt")
    assert "text" in erased.reason("file:other.txt", "1234")
    assert erased.refuses(DocumentRecord(ordinal=0, source="x", text_hash="1234"))
    assert erased.reason("file:other.txt", "12345") == erased.reason("file:other.txt") == ""
    data = (root / FILE).read_bytes()
    assert b"secret" not in data and b"1234" not in data.replace(erased.lists[0].key.encode(), b"")


def test_it_survives_being_written(root: Path) -> None:
    assert ErasedList.from_json(load_erased(root).to_json()) == load_erased(root)
    assert not load_erased(root / "nowhere")


def test_a_memory_that_takes_another_in_keeps_both(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "locks").mkdir()
    theirs = ErasedList().with_erased(["file:theirs.txt"], [])
    own = load_erased(root).key_hash("x")
    take_in(root, theirs)
    take_in(root, theirs)
    assert load_erased(root).reason("file:theirs.txt") and load_erased(root).reason("file:secret.txt")
    assert len(load_erased(root).lists) == 2 and load_erased(root).key_hash("x") == own
    take_in(other, theirs)
    assert load_erased(other) == theirs


def test_what_is_let_in_again_is_off_the_list(root: Path) -> None:
    assert door(root)("file:secret.txt", "9")
    assert not door(root, allow=True, author="me")("file:secret.txt", "1234")
    assert not load_erased(root)
    assert not readmit(root, "file:secret.txt", "1234")
    (entry,) = audit.read(root).entries
    assert entry.act == "readmit" and b"secret" not in audit.path(root).read_bytes()
    assert not door(root)("file:secret.txt", "1234")


@pytest.mark.parametrize(
    "value",
    [{}, {"lists": [{"key": "00", "sources": [], "texts": []}]}, {"lists": [{"key": "00" * 32, "sources": [1], "texts": []}]}],
)
def test_another_form_is_refused(value: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(CorruptObject):
        ErasedList.from_json(value)


def test_a_damaged_file_is_told(root: Path) -> None:
    (root / FILE).write_bytes((root / FILE).read_bytes().replace(b"sources", b"sourceS"))
    with pytest.raises(CorruptObject, match=FILE):
        load_erased(root)
