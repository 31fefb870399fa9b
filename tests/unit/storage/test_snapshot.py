from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from storage_driver import OTHER, SPEC, Gister, add, check_layer, create, ids_of, say

from megacontext.core.timeline import Timeline
from megacontext.errors import CorruptObject, MissingObject, UnknownReference
from megacontext.storage import Repository


def filled(path: Path, blocks: int = 100, **options: object) -> tuple[Repository, Gister]:
    repository, gister = create(path, **options), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", blocks, gister)
        writer.commit()
        add(writer, "b", 3, gister, last=5)
    return repository, gister


def test_reads_by_range_and_by_index_agree(tmp_path: Path) -> None:
    repository, gister = filled(tmp_path / "m")
    snapshot = repository.snapshot()
    ids = np.concatenate((ids_of("a", 100), ids_of("b", 3)))
    assert snapshot.timeline() == Timeline(blocks=103) and snapshot.cursor == 103 * 32
    for start, stop in ((0, 103), (5, 5), (31, 33), (95, 103), (100, 103), (103, 103), (0, 96)):
        np.testing.assert_array_equal(snapshot.tokens(start, stop), ids[start:stop])
    index = np.array([102, 0, 31, 32, 0, 96, 64])
    np.testing.assert_array_equal(snapshot.tokens_at(index), ids[index])
    assert snapshot.tokens_at(np.array([], np.int64)).shape == (0, 32)
    assert snapshot.fill_at(index).tolist() == [5, 32, 32, 32, 32, 32, 32]
    assert snapshot.documents_at(index).tolist() == [1, 0, 0, 0, 0, 0, 0]
    check_layer(snapshot, gister)


def test_what_is_not_there_is_unknown(tmp_path: Path) -> None:
    repository, _ = filled(tmp_path / "m")
    snapshot = repository.snapshot()
    for read in (
        lambda: snapshot.tokens(0, 104),
        lambda: snapshot.tokens(-1, 2),
        lambda: snapshot.tokens_at(np.array([3, 103])),
        lambda: snapshot.gists(1, 0, 104),
        lambda: snapshot.gists(2, 3, 4),
        lambda: snapshot.gists(0, 0, 1),
        lambda: snapshot.gists(3, 0, 1),
        lambda: snapshot.gists_at(2, np.array([-1])),
        lambda: snapshot.layer("nobody"),
        lambda: snapshot.document_of(103),
    ):
        with pytest.raises(UnknownReference):
            read()
    create(tmp_path / "empty")
    with pytest.raises(UnknownReference, match="without a GistNet"):
        Repository.open(tmp_path / "empty").snapshot().layer()


def test_arrays_are_read_only(tmp_path: Path) -> None:
    repository, _ = filled(tmp_path / "m")
    snapshot = repository.snapshot()
    arrays = [snapshot.tokens(*span) for span in ((0, 5), (0, 103), (100, 103))] + [snapshot.gists(1, 0, 103)]
    arrays += [snapshot.tokens_at(np.arange(3)), snapshot.fill(98, 103), snapshot.open_ids[:0]]
    for array in arrays[:-1]:
        with pytest.raises(ValueError):
            array[...] = 0


def test_a_snapshot_stays_while_the_writer_goes_on(tmp_path: Path) -> None:
    repository, gister = filled(tmp_path / "m")
    ids = np.concatenate((ids_of("a", 100), ids_of("b", 3)))
    with repository.writer(layer=SPEC) as writer:
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(10, dtype=np.uint32), gister)
        held = [(repository.snapshot(), gister.copy()), (writer.snapshot(), gister.copy())]
        writer.commit()
        say(writer, np.arange(3000, dtype=np.uint32), gister)
        writer.commit()
        for snapshot, model in held:
            assert (snapshot.blocks, snapshot.open_ids.tolist()) == (103, list(range(10)))
            assert len(snapshot.documents) == 3 and snapshot.documents[2].tokens == 10
            assert snapshot.document_of(103).source == "chat"
            np.testing.assert_array_equal(snapshot.tokens(0, 103), ids)
            check_layer(snapshot, model)
        check_layer(repository.snapshot(), gister)


def test_readers_beside_a_writer_see_whole_states(tmp_path: Path) -> None:
    """Each snapshot is a prefix of what is written, whole documents only, never going back."""
    repository = create(tmp_path / "m")
    done, problems = threading.Event(), list[object]()

    def read() -> None:
        last = 0
        while not done.is_set():
            try:
                snapshot = Repository.open(tmp_path / "m").snapshot()
                assert snapshot.blocks % 7 == 0 and snapshot.blocks >= last
                last = snapshot.blocks
                for record in snapshot.documents:
                    got = snapshot.tokens(record.start_block, record.start_block + 7)
                    np.testing.assert_array_equal(got, ids_of(record.source, 7))
            except Exception as error:
                problems.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with repository.writer() as writer:
        for number in range(40):
            add(writer, f"d{number}", 7, cut=2)
            if number % 3 == 0:
                writer.commit()
    done.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert repository.snapshot().blocks == 280


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_reading_a_damaged_object_is_a_typed_error_that_names_it(tmp_path: Path, damage: str) -> None:
    filled(tmp_path / "m", 2000, segment_blocks=1024)
    for path in sorted((tmp_path / "m/objects").glob("*/*")):
        data = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :]
            path.write_bytes({"flip": flipped, "truncate": data[:-3], "empty": b""}[damage])
        with pytest.raises((CorruptObject, MissingObject), match=path.name):
            read_all(Repository.open(tmp_path / "m"))
        path.write_bytes(data)
    read_all(Repository.open(tmp_path / "m"))


def read_all(repository: Repository) -> None:
    for name, _ in list(repository.history()):
        snapshot = repository.snapshot(name)
        snapshot.tokens(0, snapshot.blocks)
        snapshot.spans_at(np.arange(snapshot.blocks))
        list(snapshot.documents)
        for fingerprint in snapshot.layers:
            layer = snapshot.layer(fingerprint)
            for lod in (1, 2, 3):
                layer.gists(lod, 0, layer.count(lod))


def test_two_layers_must_be_told_apart(tmp_path: Path) -> None:
    repository, gister = filled(tmp_path / "m")
    other = Gister(OTHER)
    with repository.add_layer(OTHER) as writer:
        ids, fill = writer.tokens.tokens(0, 103), writer.tokens.fill(0, 103)
        writer.append(103, other.add(ids, fill))
        writer.commit()
    snapshot = repository.snapshot()
    check_layer(snapshot, gister)
    check_layer(snapshot, other)
    with pytest.raises(UnknownReference, match=f"{SPEC.fingerprint}, {OTHER.fingerprint}"):
        snapshot.gists(1, 0, 1)
    assert snapshot.gists(1, 0, 1, OTHER.fingerprint).shape == (1, 2, 3)
    with repository.writer(layer=OTHER) as writer:
        assert writer.snapshot().layer().spec == OTHER
