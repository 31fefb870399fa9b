"""A file has one name for good, two files have two, and what has moved with a memory or away from it is known again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.engine.source_names import KnownFiles, below, name_of, place_of, renamed
from megacontext.engine.sources import find_sources
from megacontext.storage import DocumentRecord
from megacontext.storage.hashing import digest

PARTS = st.lists(st.text("ab é:", min_size=1, max_size=3).filter(lambda part: part.strip(".")), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_names_and_places_are_inverse(folder: list[str], path: list[str]) -> None:
    around, file = Path("/", *folder), Path("/", *path)
    assert place_of(name_of(file, around), around) == file
    inside = around.joinpath(*path)
    assert name_of(inside, around) == "file:" + "/".join(path) and place_of(name_of(inside, around), around) == inside
    assert name_of(file, None) == f"file://{file}"


@given(PARTS, PARTS)
def test_a_folder_and_what_is_in_it_are_named_alike(folder: list[str], path: list[str]) -> None:
    root = Path("/", *folder)
    for around in (root, root.parent, root / "m", None):
        assert below(name_of(root, around), "/".join(path)) == name_of(root.joinpath(*path), around)
        assert renamed(name_of(root.joinpath(*path), around), name_of(root, around), "file:x") == "file:x/" + "/".join(path)


class Memory:
    """Texts by name, as a memory in a folder has them."""

    def __init__(self, around: Path, texts: dict[str, str]) -> None:
        self.around, self.texts = around, texts

    def add(self, *paths: Path) -> dict[str, str]:
        """The names that paths get, and their texts."""
        records = [
            DocumentRecord(ordinal=at, source=name, text_hash=digest(text.encode()), chars=len(text))
            for at, (name, text) in enumerate(self.texts.items())
        ]
        known = KnownFiles(records, self.around, lambda record: self.texts[record.source])
        return {item.uri: item.text for item in find_sources(paths, around=self.around, known=known)}  # type: ignore[union-attr]


def text(seed: str, lines: int = 8) -> str:
    return "".join(f"{seed} says {at}\n" for at in range(lines))


def write(root: Path, texts: dict[str, str]) -> Path:
    for name, content in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize("changed", [False, True])
def test_a_memory_from_before_knows_files_that_it_called_by_their_last_parts(tmp_path: Path, changed: bool) -> None:
    """Files and folders from elsewhere, and files in folders beside the memory, had only the end of their path."""
    more = "and one more\n" * changed
    write(tmp_path, {"away/docs/a.md": text("a") + more, "away/docs/b/c.md": text("c"), "away/n.md": text("n") + more})
    around = write(tmp_path / "here", {"deep/d.md": text("d") + more})
    before = {"file:docs/a.md": text("a"), "file:docs/b/c.md": text("c"), "file:n.md": text("n"), "file:d.md": text("d")}
    memory = Memory(around, before)
    away = tmp_path / "away"
    assert set(memory.add(away / "docs", away / "n.md", around / "deep" / "d.md")) == set(before)
    # A file of the folder, by itself, is known too; a new file beside the others is called as they are.
    assert set(memory.add(away / "docs" / "b")) == {"file:docs/b/c.md"}
    write(away, {"docs/new.md": "new"})
    assert set(memory.add(away / "docs")) == {"file:docs/a.md", "file:docs/b/c.md", "file:docs/new.md"}


def test_the_surroundings_as_a_whole_are_known_too(tmp_path: Path) -> None:
    around = write(tmp_path / "here", {"a.md": text("a"), "b/c.md": text("c")})
    assert set(Memory(around, {"file:here/a.md": text("a"), "file:here/b/c.md": text("c")}).add(around)) == {
        "file:here/a.md",
        "file:here/b/c.md",
    }


def test_another_file_of_the_same_name_is_another_source(tmp_path: Path) -> None:
    write(tmp_path, {"one/n.md": text("one"), "two/n.md": text("two"), "three/n.md": text("one") + text("three", 9)})
    memory = Memory(tmp_path / "here", {"file:n.md": text("one")})
    assert list(memory.add(tmp_path / "two" / "n.md")) == [f"file://{tmp_path}/two/n.md"]
    assert list(memory.add(tmp_path / "three" / "n.md")) == [f"file://{tmp_path}/three/n.md"]
    assert list(memory.add(tmp_path / "one" / "n.md")) == ["file:n.md"]
    # Where the file of that name is in its place, another one that says the same is another one.
    write(tmp_path / "here", {"n.md": "whatever"})
    assert list(memory.add(tmp_path / "one" / "n.md")) == [f"file://{tmp_path}/one/n.md"]


def test_one_file_in_common_does_not_make_two_folders_one(tmp_path: Path) -> None:
    write(tmp_path / "two" / "docs", {"LICENSE": text("free", 30), "a.md": text("x"), "b.md": text("y")})
    before = {"file:docs/LICENSE": text("free", 30), "file:docs/a.md": text("a"), "file:docs/b.md": text("b")}
    assert all(name.startswith("file:///") for name in Memory(tmp_path / "here", before).add(tmp_path / "two" / "docs"))


def test_a_memory_that_moved_alone_knows_what_it_left_behind_and_what_moved_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, {"old/docs/a.md": text("a"), "old/docs/b.md": text("b"), "there/you/x.md": text("x")})
    before = {"file:docs/a.md": text("a"), "file:docs/b.md": text("b"), f"file://{tmp_path}/there/me/x.md": text("x")}
    moved = Memory(tmp_path / "new", before)
    assert set(moved.add(tmp_path / "old" / "docs")) == {"file:docs/a.md", "file:docs/b.md"}
    assert set(moved.add(tmp_path / "there" / "you" / "x.md")) == {f"file://{tmp_path}/there/me/x.md"}


def test_what_has_its_name_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, {"away/n.md": text("n")})
    name = f"file://{tmp_path}/away/n.md"
    both = Memory(tmp_path / "here", {"file:n.md": text("n"), name: "something else"})
    assert list(both.add(tmp_path / "away" / "n.md")) == list(both.add(tmp_path / "away")) == [name]
