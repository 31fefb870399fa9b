"""The corpus: whole packages are held out, and nothing of them reaches training, not even as a copy."""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from corpus_files import config, name_in, small_corpus, source, write
from hypothesis import given, settings
from hypothesis import strategies as st

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
from megacontext.training.prepare import gather


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
    assert counts == {"identical": 0, "leaks": 0, "duplicates": 0}


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


@pytest.mark.parametrize(("changed", "reason"), [(0, "identical"), (12, "duplicates")])
def test_copies_within_training_are_kept_once(tmp_path: Path, changed: int, reason: str) -> None:
    root = small_corpus(tmp_path)
    original = (root / name_in("train") / "module0.py").read_text().splitlines(keepends=True)
    write(root, name_in("train", 1), "again.py", source(7, changed) + "".join(original[changed:]))
    by_split, counts = split(root)
    assert counts == {"identical": 0, "leaks": 0, "duplicates": 0} | {reason: 1}
    assert len(by_split["train"]) == 8


def test_files_too_short_for_shingles_count_as_copies_only_of_themselves() -> None:
    files = [file(name_in(split), "a", f"x = {split!r}\n") for split in SPLITS]
    files += [file(name_in("train"), name, "y = 1\n") for name in ("b", "c")]
    by_split, counts = deduplicate_and_split(files, config(Path()))
    assert [each.name for each in by_split["train"]] == ["a", "b"]
    assert counts == {"identical": 1, "leaks": 0, "duplicates": 0}


def file(package: str, name: str, text: str) -> SourceFile:
    return SourceFile(package=f"lib/{package}", name=name, path=Path(name), text=text)


SNIPPETS = [source(seed, 5) for seed in range(12)]
DRAWN = st.lists(st.tuples(st.integers(0, 30), st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4)), max_size=20)


@settings(max_examples=20)
@given(DRAWN)
def test_whatever_is_copied_where_no_split_shares_text_with_another(drawn: list[tuple[int, list[str]]]) -> None:
    """Files of random packages, pieced together from the same few snippets."""
    files = [file(name_in(split), "own", source(1000 + place, 40)) for place, split in enumerate(SPLITS)]
    files += [file(f"package{package}", str(number), "".join(parts)) for number, (package, parts) in enumerate(drawn)]
    wanted = config(Path())
    by_split, counts = deduplicate_and_split(files, wanted)
    assert sum(map(len, by_split.values())) + sum(counts.values()) == len(files)
    packages = [{each.package for each in by_split[split]} for split in SPLITS]
    assert not packages[0] & packages[1] and not packages[0] & packages[2] and not packages[1] & packages[2]
    for split, others in (("train", ("test", "validation")), ("validation", ("test",))):
        held = frozenset().union(*(shingles(each.text) for other in others for each in by_split[other]))  # type: ignore[index]
        for each in by_split[split]:  # type: ignore[index]
            marks = shingles(each.text)
            assert len(marks & held) <= wanted.leak_overlap * len(marks)
    for kept in by_split.values():
        assert len({each.text for each in kept}) == len(kept)
    assert deduplicate_and_split(files, wanted) == (by_split, counts)


def test_an_empty_split_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "lib", name_in("train"), "a.py", source(1))
    write(tmp_path / "lib", name_in("test"), "a.py", source(2))
    with pytest.raises(DatasetError, match=r"the validation split is empty: add folders .* hold out more than 30 percent"):
        split(tmp_path / "lib")


def test_a_corpus_of_binary_files_is_named_as_such(tmp_path: Path) -> None:
    for number, data in enumerate((bytes(1000), b"\xff\xfe" * 400, b"short", b"x" * 300_000)):
        (tmp_path / f"file{number}.py").write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        list(collect(config(tmp_path)))
    found = "of 4 files named .py, 2 are binary or not UTF-8, 1 shorter than 400 bytes, 1 longer than 200000"
    assert f"no usable text in {tmp_path}: {found}" in str(caught.value)


def test_a_folder_without_such_files_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "notes.md").write_text("text " * 200)
    with pytest.raises(DatasetError, match=r"no files named \.py in .*: name other folders or other suffixes"):
        list(collect(config(tmp_path)))
    (found,) = collect(CorpusConfig(roots=(str(tmp_path),), suffixes=(".md",)))
    assert (found.package, found.name) == (f"{tmp_path.name}/package", f"{tmp_path.name}/package/notes.md")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    (root / name_in("train") / "binary.py").write_bytes(bytes(1000))
    write(root, name_in("train"), "short.py", "x = 1\n")
    seen: Counter[str] = Counter()
    assert len(list(collect(config(root), seen))) == 16
    assert seen == {"files": 18, "not_text": 1, "too_short": 1}
    assert gather(config(root)).counts["seen"] == seen


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


def test_a_root_inside_a_folder_of_tests_is_read_like_any_other(tmp_path: Path) -> None:
    assert len(list(collect(config(small_corpus(tmp_path / "tests"))))) == 16


@pytest.mark.parametrize("percent", [0, 50])
def test_impossible_shares_are_refused(percent: int) -> None:
    with pytest.raises(DatasetError, match="between 1 and 49"):
        CorpusConfig(held_out_percent=percent)
