"""Sources are found in order, named for good, and what cannot be read never stops the rest."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from megacontext.engine.sources import FoundFile, Skipped, Source, SourceConfig, Text, find_sources
from megacontext.errors import ConfigError, IngestError


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(*inputs: str | Path | Text, **options: object) -> dict[str, str]:
    """URI → text, or the reason in brackets; in order. The memory lies beside the first path."""
    first = next((Path(given).resolve() for given in inputs if not isinstance(given, Text) and given != "-"), None)
    found = find_sources(inputs, around=first and first.parent, **options)  # type: ignore[arg-type]
    return {item.uri: item.text if isinstance(item, Source) else f"[{item.reason}]" for item in found}


def test_what_lies_around_the_memory_is_named_by_its_place_however_it_is_given(tmp_path: Path) -> None:
    write(tmp_path, {"a/notes.md": "a", "c/notes.md": "c"})

    def uris(*inputs: Path, around: Path = tmp_path) -> list[str]:
        return [item.uri for item in find_sources(inputs, around=around)]

    both = ["file:a/notes.md", "file:c/notes.md"]
    assert uris(tmp_path / "a" / "notes.md", tmp_path / "c" / "notes.md") == both
    assert uris(tmp_path) == uris(tmp_path / "a", tmp_path / "c") == uris(tmp_path, tmp_path / "a", tmp_path) == both
    # What lies elsewhere is named by its whole path.
    whole = [f"file://{tmp_path}/{name}/notes.md" for name in "ac"]
    assert [*uris(tmp_path / "a", around=tmp_path / "m"), *uris(tmp_path / "c" / "notes.md", around=tmp_path / "a")] == whole
    assert uris(tmp_path, around=tmp_path / "m") == whole


def test_links_do_not_give_a_file_two_names(tmp_path: Path) -> None:
    write(tmp_path, {"real/deep/a.md": "a", "real/deep/b.md": "b"})
    (tmp_path / "real" / "deep" / "link.md").symlink_to(tmp_path / "real" / "deep" / "a.md")
    (tmp_path / "way").symlink_to(tmp_path / "real")
    around = tmp_path / "way"
    deep = {f"file:deep/{name}.md" for name in ("a", "b", "link")}
    for root in ("way", "real", "way/deep", "real/deep"):
        assert {item.uri for item in find_sources([tmp_path / root], around=around)} == deep
    for name in ("a", "link"):
        for root in ("way", "real"):
            assert [i.uri for i in find_sources([tmp_path / root / "deep" / f"{name}.md"], around=around)] == [
                f"file:deep/{name}.md"
            ]


def test_folders_are_read_in_sorted_order_and_named_from_the_root_on(tmp_path: Path) -> None:
    root = write(tmp_path / "deep" / "project", {"b.py": "b", "a/z.txt": "z", "a/b/c.md": "c", "a.py": "a", "ä ö.txt": "ä"})
    expected = {
        "file:project/a.py": "a",
        "file:project/b.py": "b",
        "file:project/ä ö.txt": "ä",
        "file:project/a/z.txt": "z",
        "file:project/a/b/c.md": "c",
    }
    assert list(read(root).items()) == list(expected.items())
    assert read(root / "a" / ".." / "a" / "z.txt") == {"file:z.txt": "z"}
    assert find_sources([root / "a" / "z.txt"]).items[0].uri == f"file://{root}/a/z.txt"


def test_the_working_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path / "here", {"a.txt": "a"}))
    assert read(".") == read("../here") == {"file:here/a.txt": "a"}


def test_media_types_and_tags(tmp_path: Path) -> None:
    root = write(tmp_path / "x", {"a.py": "a", "b.html": "b", "c": "c"})
    found = [item for item in find_sources([root], tags=["code", "v1"]) if isinstance(item, Source)]
    assert [item.media_type for item in found] == ["text/x-python", "text/html", "text/plain"]
    assert {item.tags for item in found} == {("code", "v1")}


def test_standard_input_and_strings() -> None:
    assert read("-", stdin=io.BytesIO("naïve\r\n".encode())) == {"stdin:": "naïve\r\n"}
    assert read(Text(name="note", text="hello")) == {"text:note": "hello"}
    assert read("-", stdin=io.BytesIO(b"")) == {"stdin:": "[empty]"}
    with pytest.raises(IngestError, match="twice"):
        find_sources(["-", "-"])


def test_what_machines_made_is_passed_over_and_reported_once(tmp_path: Path) -> None:
    root = write(
        tmp_path / "p",
        {
            ".git/config": "x",
            ".env": "secret",
            "__pycache__/m.pyc": b"\0",
            "node_modules/a/b.js": "x",
            "env/pyvenv.cfg": "x",
            "env/lib/y.py": "y",
            "keep/k.py": "k",
        },
    )
    assert read(root) == {
        "file:p/.env": "[a hidden file]",
        "file:p/.git": "[a hidden folder]",
        "file:p/__pycache__": "[a folder of machine-made files]",
        "file:p/env": "[a virtual environment]",
        "file:p/node_modules": "[a folder of machine-made files]",
        "file:p/keep/k.py": "k",
    }
    hidden = read(root, config=SourceConfig(hidden=True, skip_folders=frozenset()))
    assert hidden["file:p/.git/config"] == "x" and hidden["file:p/.env"] == "secret"
    assert hidden["file:p/__pycache__/m.pyc"] == "[binary: it holds NUL bytes]"
    assert read(root / ".git") == {"file:.git/config": "x"}
    assert read(root / "env" / "lib") == {"file:lib/y.py": "y"}


def test_unusable_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    root = write(
        tmp_path / "p", {"binary": b"a\0b", "latin": "é".encode("latin-1"), "empty": "", "large": "x" * 101, "ok": "ok"}
    )
    os.mkfifo(root / "pipe")
    (root / "nowhere").symlink_to(root / "missing")
    (root / "circle").symlink_to(root / "circle")
    found = read(root, config=SourceConfig(max_bytes=100))
    assert found == {
        "file:p/binary": "[binary: it holds NUL bytes]",
        "file:p/circle": "[too many levels of symbolic links]",
        "file:p/empty": "[empty]",
        "file:p/large": "[larger than 100 bytes]",
        "file:p/latin": "[not UTF-8 text (byte 0)]",
        "file:p/nowhere": "[gone, or a link to nothing]",
        "file:p/ok": "ok",
        "file:p/pipe": "[not a regular file; pipe it to '-' to add what it gives]",
    }
    assert read("-", stdin=io.BytesIO(b"x" * 101), config=SourceConfig(max_bytes=100)) == {"stdin:": "[larger than 100 bytes]"}


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a/f": "f"})
    (root / "a" / "up").symlink_to(root)
    (root / "file").symlink_to(root / "a" / "f")
    assert read(root) == {"file:p/file": "f", "file:p/a/up": "[a link to a folder; add that folder itself]", "file:p/a/f": "f"}
    (tmp_path / "link").symlink_to(root / "a")
    assert read(tmp_path / "link")["file:a/f"] == "f"


def test_files_that_vanish_or_lock_while_reading_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "p", {"a": "a", "b": "b", "c/d": "d"})
    found = find_sources([root], around=tmp_path)
    (root / "a").unlink()
    real = os.open

    def denied(path: os.PathLike[str], flags: int) -> int:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", denied)
    assert [item.uri for item in found] == ["file:p/a", "file:p/b", "file:p/c/d"]
    assert [item.reason for item in found if isinstance(item, Skipped)] == ["gone, or a link to nothing", "permission denied"]


def test_a_folder_that_cannot_be_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "p", {"a/x": "x", "b": "b"})
    real = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert read(root) == {"file:p/b": "b", "file:p/a": "[permission denied]"}


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"ok": "ok"})
    (root / os.fsdecode(b"bad\xff")).write_text("x")
    assert read(root) == {"file:p/bad\\xff": "x", "file:p/ok": "ok"}


def test_roots_that_do_not_exist_are_errors(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/README": "a"})
    with pytest.raises(IngestError, match=r"nowhere does not exist; nothing was added"):
        find_sources([root / "a", tmp_path / "nowhere"])
    assert list(read(root / "a", root / "a")) == ["file:a/README"]


def test_listing_tells_the_size_and_reading_can_be_repeated(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a": "abc", "b": "de", ".c": "x"})
    found = find_sources([root, Text(name="t", text="ä")])
    assert found.size == 7 and len(found) == 4
    assert sum(isinstance(item, FoundFile) for item in found.items) == 2
    assert list(found) == list(found)


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError):
        SourceConfig(max_bytes=0)


def test_a_gigabyte_line_and_links_in_circles_are_told_at_once(tmp_path: Path) -> None:
    root = tmp_path / "p"
    (root / "a").mkdir(parents=True)
    with open(root / "line", "wb") as file:
        file.write(b"x")
        file.truncate(2**30)
    (root / "a" / "b").symlink_to(root / "c")
    (root / "c").symlink_to(root / "a" / "b")
    (root / "a" / "up").symlink_to("..")
    assert read(root) == {
        "file:p/line": "[larger than 67108864 bytes]",
        "file:p/c": "[too many levels of symbolic links]",
        "file:p/a/b": "[too many levels of symbolic links]",
        "file:p/a/up": "[a link to a folder; add that folder itself]",
    }
    with pytest.raises(IngestError, match="nothing was added"):
        find_sources([root / "c"])
