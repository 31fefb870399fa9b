"""Files of one name are as many sources as there are files; what a memory knows, it does not get a second time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
from cli_kit import Cli

import megacontext
from megacontext.engine import memory as engine
from megacontext.storage import Repository


def test_two_files_of_one_name_from_elsewhere_are_two_sources(cli: Cli, memory: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(memory, home / "m.mc")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text(f"what {name} says\n")
        added = cli("-C", home / "m.mc", "add", f"{name}/notes.txt", "--json").json
        assert added["added"] == [f"file://{tmp_path}/{name}/notes.txt"] and not added["updated"] and not added["recognised"]
    assert cli("-C", home / "m.mc", "show", "one/notes.txt").out == "what one says\n"
    assert cli("-C", home / "m.mc", "add", "one", "two/notes.txt", "--json").json["unchanged"] == [
        f"file://{tmp_path}/{name}/notes.txt" for name in ("one", "two")
    ]


def test_a_memory_from_before_gets_nothing_twice(cli: Cli, memory: Path, tmp_path: Path, sources: Path) -> None:
    """Its files were called by the last part of what was given; here by what lies beside a memory that has moved since."""
    shutil.copytree(memory, tmp_path / "home" / "m.mc")
    home = ("-C", tmp_path / "home" / "m.mc")
    (sources / "notes.md").write_text((sources / "notes.md").read_text() + "\nAnd a line more.\n")
    again = cli(*home, "add", "project")
    assert "note: project is still called file:project" in again.err and "(1 of them new versions)" in again.out
    value = cli(*home, "add", "project", "project/src/alpha.py", "--json").json
    assert (value["added"], value["updated"]) == ([], [])
    assert sorted(value["unchanged"]) == ["file:project/notes.md", "file:project/src/alpha.py", "file:project/src/beta.py"]
    assert cli(*home, "status", "--json").json["documents"] == 3


def test_status_names_what_is_not_finished_and_how_far_it_is(cli: Cli, memory: Path) -> None:
    repository = Repository.open(memory)
    assert cli("-C", memory, "status", "--json").json["under_way"] is None
    with repository.writer() as writer:
        writer.begin_document(source="file:long.txt", text_hash="x", labels=["secret"], chars=1000)
        writer.append_blocks(np.ones((3, 32), np.uint32), chars=[0, 200, 400], lines=[1, 2, 3])
        writer.sync()
        now = cli("-C", memory, "status", "--json").json
        assert now["under_way"] == {
            "source": "file:long.txt", "version": 1, "blocks": 3, "chars_done": 400, "chars": 1000, "writing": True
        }  # fmt: skip
        assert now["documents"] == 3
        assert "file:long.txt (40% of 1,000 characters, 3 blocks) is being written" in cli("-C", memory, "status").out
    assert "was interrupted" in cli("-C", memory, "status").out
    cli("-C", memory, "branch", "other")
    assert cli("-C", memory, "status", "--at", "other", "--json").json["under_way"] is None
    denied = megacontext.open(memory, deny=["secret"]).status()
    assert denied.under_way is None


def test_a_budget_that_is_too_small_says_which_is_not(cli: Cli, memory: Path) -> None:
    answer = cli("-C", memory, "generate", "def", "--budget", "1", "--max-new-tokens", "1")
    found = re.search(r"raise it to (\d+)", answer.err)
    assert answer.code == 2 and found is not None
    needed = int(found[1])
    assert cli("-C", memory, "generate", "d", "--budget", needed, "--max-new-tokens", "1").code == 0


def test_standard_input_that_takes_the_place_of_another_is_told(cli: Cli, memory: Path) -> None:
    assert "note" not in cli("-C", memory, "add", "-", stdin="first").err
    assert "--name keeps both" in cli("-C", memory, "add", "-", stdin="second").err
    assert "note" not in cli("-C", memory, "add", "-", "--name", "third", stdin="third").err


def test_a_memory_that_is_reached_by_a_link_names_files_as_before(
    cli: Cli, memory: Path, sources: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.mc").symlink_to(memory)
    assert cli("-C", "elsewhere/link.mc", "add", sources, "--json").json["added"] == []
    assert engine.Memory.open("elsewhere/link.mc").add(sources).documents == 0
