"""Labels as values: ranges against a mask of blocks, and the object that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import add, create

from megacontext.errors import CorruptObject, InvalidInput
from megacontext.storage import DocumentRecord
from megacontext.storage.labels import KIND, Labels, Marks, checked_names, load_labels
from megacontext.storage.tensors import decode, encode

BLOCKS = 40
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, BLOCKS), st.integers(0, BLOCKS)), max_size=12)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(STEPS, st.integers(0, BLOCKS), st.integers(0, BLOCKS))
def test_ranges_agree_with_a_mask(steps: list[tuple[bool, str, int, int]], low: int, high: int) -> None:
    labels, masks = Labels(), {name: np.zeros(BLOCKS, bool) for name in "abc"}
    for added, name, start, stop in steps:
        labels = labels.add([name], start, stop) if added else labels.remove([name], start, stop)
        masks[name][start:stop] = added
    assert set(labels.ranges) == {name for name, mask in masks.items() if mask.any()}
    for names in (["a"], ["b", "c"], ["nobody"]):
        held = np.zeros(BLOCKS, bool)
        for start, stop in labels.held(names):
            assert not held[max(start - 1, 0) : stop].any()  # disjoint and not touching
            held[start:stop] = True
        assert held.tolist() == np.any([masks.get(name, np.zeros(BLOCKS, bool)) for name in names], axis=0).tolist()
    inside = {name for name, mask in masks.items() if mask[low:high].any()}
    assert set(labels.carried(low, high)) == inside == {name for name, _, _ in labels.parts(low, high)}
    for name in inside:
        part = np.zeros(high - low, bool)
        for start, stop in ((a, b) for each, a, b in labels.parts(low, high) if each == name):
            part[start:stop] = True
        assert part.tolist() == masks[name][low:high].tolist()


def test_documents_label_the_blocks_that_are_new() -> None:
    old = DocumentRecord(ordinal=0, source="old", blocks=10, labels=("secret",))
    open_ = DocumentRecord(ordinal=1, source="open", start_block=10, blocks=9, labels=("mine",), open=True)
    labels = Labels().growing([old, open_], 12)
    assert labels.held(["secret"]) == () and labels.held(["mine"]) == ((12, 19),)
    marked = labels.mark(open_, Marks(labels=("other",), tags=("t",)))
    assert marked.current(open_).labels == ("other",) and marked.current(open_).tags == ("t",)
    assert marked.growing([open_], 15).held(["other"]) == ((15, 19),)
    assert marked.current(old) is old


def test_they_come_back_from_a_commit_and_only_where_there_are_any(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        add(writer, "a", 3)
        plain = writer.commit()
    assert repository.commit(plain).labels == ""
    first = repository.label(lambda _, labels: labels.add(["sécret, or: so"], 1, 3), message="why", author="who")
    assert repository.snapshot().labels.held(["sécret, or: so"]) == ((1, 3),)
    assert repository.label(lambda _, labels: labels.add(["sécret, or: so"], 2, 3)) == first  # no difference, no commit
    second = repository.label(lambda _, labels: Labels())
    assert not repository.snapshot().labels and repository.snapshot(first).labels
    assert [repository.commit(name).parents for name in (first, second)] == [(plain,), (first,)]
    with repository.writer() as writer:
        add(writer, "b", 3)
        writer.commit()
    assert repository.fsck().clean and not repository.snapshot().labels


@pytest.mark.parametrize(("labels", "resumed"), [(("a", "b"), 2), (("b", "a", "a"), 2), (("a",), 0), ((), 0)])
def test_a_document_that_a_crash_left_goes_on_with_its_labels_only(
    tmp_path: Path, labels: tuple[str, ...], resumed: int
) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        writer.begin_document(source="a", text_hash="h", labels=("a", "b"))
        writer.append_blocks(np.ones((2, 32), np.uint32))
    with repository.writer() as writer:
        assert writer.begin_document(source="a", text_hash="h", labels=labels).blocks == resumed
        writer.append_blocks(np.ones((1, 32), np.uint32))
        assert writer.end_document().labels == tuple(sorted(set(labels)))
        writer.commit()
    assert repository.snapshot().labels.carried(0, 3) == tuple(sorted(set(labels)))


@pytest.mark.parametrize(
    ("ranges", "documents"),
    [([[3, 2]], "{}"), ([[0, 4], [4, 5]], "{}"), ([[-1, 4]], "{}"), ([[0, 1]], "[]"), ([[0, 1]], '{"0": {"labels": []}}')],
)
def test_a_damaged_object_is_named(tmp_path: Path, ranges: list[list[int]], documents: str) -> None:
    repository = create(tmp_path / "m")
    arrays = {"ranges:secret": np.array(ranges, np.int64)}
    writer = repository.writer()
    name = writer._store.put(encode(arrays, {"kind": KIND, "documents": documents, "before": ""}))
    writer._store.sync()
    writer.close()
    with pytest.raises(CorruptObject, match=name):
        load_labels(repository._place.reader, name)


def test_the_object_is_plain_safetensors() -> None:
    labels = Labels(ranges={"secret": ((0, 2), (5, 9))}, documents={3: Marks(labels=("x",))}, before="abc")
    arrays, metadata = decode(labels.to_bytes())
    assert arrays["ranges:secret"].tolist() == [[0, 2], [5, 9]] and metadata["before"] == "abc"
    assert labels.to_bytes() == Labels(ranges=dict(labels.ranges), documents=labels.documents, before="abc").to_bytes()


def test_names() -> None:
    assert checked_names(["b", "a b", "b"]) == ("a b", "b")
    for bad in ([""], ["a,b"], [" a"], ["a\n"], "secret"):
        with pytest.raises(InvalidInput):
            checked_names(bad)
