"""The corpus: whole packages are held out, and nothing of them reaches training, not even as a copy."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from corpus_files import config, name_in, small_corpus, source, write

from megacontext.errors import DatasetError
from megacontext.training.corpus import (
    SPLITS,
    STDLIB_TEST,
    STDLIB_VALIDATION,
    CorpusConfig,
    SourceFile,
    collect,
    deduplicate_and_split,
    read_text,
    shingles,
    split_of,
)


def split(root: Path) -> tuple[dict[str, list[SourceFile]], dict[str, int]]:
    by_split, counts = deduplicate_and_split(collect(config(root)), config(root))
    return dict(by_split), counts


def test_packages_stay_whole_and_splits_are_disjoint(tmp_path: Path) -> None:
    by_split, counts = split(small_corpus(tmp_path))
    packages = [{file.package for file in by_split[name]} for name in SPLITS]
    assert packages == [
        {f"lib/{name_in('train', 0)}", f"lib/{name_in('train', 1)}"},
        {f"lib/{name_in('validation')}"},
        {f"lib/{name_in('test')}"},
    ]
    assert counts == {"leaks": 0, "duplicates": 0}


@pytest.mark.parametrize("held_out", ["test", "validation"])
@pytest.mark.parametrize("changed", [0, 12])
def test_a_copy_of_a_held_out_file_never_reaches_training(tmp_path: Path, held_out: str, changed: int) -> None:
    root = small_corpus(tmp_path)
    original = (root / name_in(held_out) / "module1.py").read_text().splitlines(keepends=True)  # type: ignore[arg-type]
    leaked = source(7, changed) + "".join(original[changed:])
    write(root, name_in("train"), "vendored_copy.py", leaked)
    by_split, counts = split(root)
    assert counts["leaks"] == 1
    assert "vendored_copy.py" not in {file.path.name for file in by_split["train"]}
    assert "module1.py" in {file.path.name for file in by_split[held_out]}
    held = frozenset().union(*(shingles(file.text) for file in by_split[held_out]))
    assert not any(shingles(file.text) & held for file in by_split["train"])


def test_a_copy_between_held_out_splits_is_kept_in_one(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    write(root, name_in("validation"), "copy.py", (root / name_in("test") / "module0.py").read_text())
    by_split, counts = split(root)
    assert counts["leaks"] == 1
    assert "copy.py" not in {file.path.name for file in by_split["validation"]}


def test_duplicates_within_training_are_kept_once(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    write(root, name_in("train", 1), "again.py", (root / name_in("train") / "module0.py").read_text())
    by_split, counts = split(root)
    assert counts == {"leaks": 0, "duplicates": 1}
    assert len(by_split["train"]) == 8


def test_an_empty_split_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "lib", name_in("train"), "a.py", source(1))
    write(tmp_path / "lib", name_in("test"), "a.py", source(2))
    with pytest.raises(DatasetError, match="the validation split is empty: add folders"):
        split(tmp_path / "lib")


def test_roots_must_be_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        list(collect(config(tmp_path / "absent")))


def test_the_held_out_standard_library_is_held_out_by_name() -> None:
    assert not STDLIB_TEST & STDLIB_VALIDATION
    assert all(split_of(f"stdlib/{name}", 4) == "test" for name in STDLIB_TEST)
    assert all(split_of(f"stdlib/{name}", 4) == "validation" for name in STDLIB_VALIDATION)
    assert split_of("stdlib/argon", 4) == "train"
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    held_out = STDLIB_TEST | STDLIB_VALIDATION
    found = {name for name in held_out if (stdlib / name).is_dir() or (stdlib / f"{name}.py").is_file()}
    assert found == held_out


def test_what_is_not_text_is_left_out(tmp_path: Path) -> None:
    for name, data in {"binary.py": b"a\0b", "latin.py": b"caf\xe9", "crlf.py": b"a\r\nb\n"}.items():
        (tmp_path / name).write_bytes(data)
    texts = [read_text(tmp_path / name) for name in ("binary.py", "latin.py", "absent.py", "crlf.py")]
    assert texts == [None, None, None, "a\nb\n"]


def test_tests_and_vendored_copies_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "lib"
    for folder in ("kept", "tests", "_vendor"):
        write(root / "package", folder, "a.py", source(1))
    assert [file.path.parent.name for file in collect(config(root))] == ["kept"]


@pytest.mark.parametrize("percent", [0, 50])
def test_impossible_shares_are_refused(percent: int) -> None:
    with pytest.raises(DatasetError, match="between 1 and 49"):
        CorpusConfig(held_out_percent=percent)
