from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import TEXTS, Cli


def test_rm_takes_documents_out_and_says_which(cli: Cli, memory: Path) -> None:
    before = cli("-C", memory, "status", "--json").json
    dry = cli("-C", memory, "rm", "src/*.py", "--dry-run")
    assert dry.code == 0 and dry.out.count("would remove") == 2 and cli("-C", memory, "status", "--json").json == before
    removed = cli("-C", memory, "rm", "*.py", "-m", "No code", "--json").json
    assert [Path(each).name for each in removed["removed"]] == ["alpha.py", "beta.py"] and removed["dry_run"] is False
    status = cli("-C", memory, "status", "--json").json
    assert (status["documents"], status["commit"]) == (1, removed["commit"]) and status["dead"] == removed["blocks"]
    assert "dead" in cli("-C", memory, "status").out
    assert cli("-C", memory, "log", "-n", "1", "--json").json["commits"][0]["message"] == "No code"
    assert cli("-C", memory, "search", "retry policy", "--json").json["hits"][0]["source"].endswith("notes.md")
    gone = cli("-C", memory, "show", "src/alpha.py")
    assert gone.code == 2 and "older commits" in gone.err
    assert cli("-C", memory, "show", "src/alpha.py", "--at", before["commit"]).out == TEXTS["src/alpha.py"]
    assert cli("-C", memory, "fsck").code == 0


def test_rm_of_what_is_not_there_removes_nothing(cli: Cli, memory: Path) -> None:
    answer = cli("-C", memory, "rm", "notes.md", "nodes.md")
    assert answer.code == 2 and "no live document fits" in answer.err
    assert cli("-C", memory, "status", "--json").json["documents"] == 3


def test_the_receipt_tells_what_an_edit_could_keep(cli: Cli, memory: Path) -> None:
    source = Path(cli("-C", memory, "show", "alpha.py", "--json").json["source"].removeprefix("file:"))
    source.parent.mkdir(parents=True)
    source.write_text(TEXTS["src/alpha.py"] + "\n# an end\n")
    answer = cli("-C", memory, "add", "project")
    assert answer.code == 0 and "reused" in answer.out and "that were there before" in answer.out


@pytest.mark.parametrize("name", ["src", "src/", "./project/src", "project/src/", "file:project/src"])
def test_a_folder_stands_for_what_is_below_it(cli: Cli, memory: Path, sources: Path, name: str) -> None:
    both = ["file:project/src/alpha.py", "file:project/src/beta.py"]
    assert cli("-C", memory, "rm", name, "--dry-run", "--json").json["removed"] == both
    assert cli("-C", memory, "prune", name, "--dry-run", "--json").json["documents"] == both
    assert [each["source"] for each in cli("-C", memory, "erase", name, "--dry-run", "--json").json["documents"]] == both
    hits = cli("-C", memory, "search", "retry policy", "--source", name, "--json").json["hits"]
    assert {hit["source"] for hit in hits} == {"file:project/src/beta.py"}


def test_the_error_names_what_was_perhaps_meant(cli: Cli, memory: Path) -> None:
    for verb in (("rm",), ("prune", "--yes"), ("erase", "--yes"), ("label",)):
        answer = cli("-C", memory, *verb, "scr/")
        assert answer.code == 2 and "file:project/src/" in answer.err, answer.err


def test_commits_are_named_as_git_names_them(cli: Cli, memory: Path) -> None:
    first = cli("-C", memory, "status", "--json").json["commit"]
    cli("-C", memory, "rm", "notes.md")
    for name in ("main~1", "HEAD^", "@~", first[:8]):
        assert cli("-C", memory, "show", name, "--json").json["commit"] == first
        assert cli("-C", memory, "status", "--at", name, "--json").json["documents"] == 3
        assert cli("-C", memory, "show", "notes.md", "--at", name).out == TEXTS["notes.md"]
        assert cli("-C", memory, "search", "exponential", "--at", name, "--json").json["hits"]
        assert cli("-C", memory, "diff", name, "HEAD", "--json").json["removed"] == ["file:project/notes.md"]
        assert cli("-C", memory, "log", name, "--json").json["commits"][0]["commit"] == first
        assert cli("-C", memory, "branch", f"at-{len(name)}-{name[0].strip('@')}x", "--json").code == 0
    assert cli("-C", memory, "tag", "before", "HEAD~1", "--json").json["commit"] == first
    assert cli("-C", memory, "checkout", "-b", "back", "main~1").code == 0
    missing = cli("-C", memory, "show", "main~9")
    assert missing.code == 2 and "does not exist" in missing.err
