"""What is tracked: modules of readable size, no machine's paths, no addresses of registries, links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 400
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
# Written in pieces, or this file would find itself.
TRACES = [
    "/" + "root/",
    "/" + "home/",
    "/" + "Users/",
    "/" + "opt/wheels",
    "/" + "opt/pypi",
    "/" + "work/",
    "files." + "pythonhosted",
    "--" + "index-url ",
    "--" + "extra-index-url",
    "registry." + "npmjs",
]


def tracked() -> list[Path]:
    """Every file that a clone would have, and those that are about to be added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data and len(data) < 3_000_000:
            yield path, data.decode("utf-8")


def test_modules_fit_a_head() -> None:
    sizes = {str(path): text.count("\n") for path, text in texts() if path.suffix == ".py"}
    assert sizes and {name: size for name, size in sizes.items() if size >= LIMIT} == {}


def test_every_module_says_what_it_is() -> None:
    shipped = [(path, text) for path, text in texts() if path.suffix == ".py" and "tests" not in path.parts]
    assert [str(path) for path, text in shipped if not text.startswith('"""')] == []


def test_no_paths_of_a_machine_and_no_registries() -> None:
    found = [f"{path}: {trace}" for path, text in texts() for trace in TRACES if trace in text]
    assert found == []


def test_pins_have_no_local_labels() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_links_in_the_docs_lead_somewhere() -> None:
    broken = []
    for path, text in texts():
        if path.suffix != ".md":
            continue
        for target in LINK.findall(text):
            place = target.partition("#")[0]
            if place and "://" not in place and not place.startswith("mailto:") and not (path.parent / place).exists():
                broken.append(f"{path}: {target}")
    assert broken == []


def test_files_that_the_docs_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    # `old/path.py` in the table of superseded paths is the one exception.
    named = re.compile(r"`((?:src|tests|tools|configs|docs)/[\w./-]+)`")
    missing = {
        f"{page.name}: {name}"
        for page in pages
        for line in page.read_text().splitlines()
        if "→" not in line
        for name in named.findall(line)
        if not (ROOT / name).exists()
    }
    assert missing == set()
