from __future__ import annotations

from pathlib import Path

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
