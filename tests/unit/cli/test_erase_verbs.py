from __future__ import annotations

import json
from pathlib import Path

from cli_kit import TEXTS, Cli

from megacontext.storage.audit import path


def test_erase_destroys_and_gives_a_receipt(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "tag", "v1")
    cli("-C", memory, "rm", "src/alpha.py")
    before = cli("-C", memory, "status", "--json").json
    dry = cli("-C", memory, "erase", "alpha.py", "--dry-run", "--json").json
    assert dry["dry_run"] and dry["documents"][0]["source"].endswith("alpha.py") and dry["tags"] == ["v1"]
    assert cli("-C", memory, "status", "--json").json == before
    asked = cli("-C", memory, "erase", "alpha.py")
    assert asked.code == 2 and "--yes" in asked.err

    receipt = cli("-C", memory, "erase", "alpha.py", "--yes", "--json").json
    for kind in ("tokens", "gists", "names"):
        assert receipt["before"][kind]["found"] > receipt["after"][kind]["found"] == 0, kind
    assert not any(b"alpha.py" in file.read_bytes() for file in memory.rglob("*") if file.is_file())
    assert cli("-C", memory, "show", "notes.md").out == TEXTS["notes.md"]
    assert cli("-C", memory, "show", "src/alpha.py", "--at", "v1").code == 2
    assert cli("-C", memory, "fsck").code == 0
    assert cli("-C", memory, "erase", "alpha.py", "--yes").code == 2
    assert "no erasure" in cli("-C", memory, "erase", "--finish").out

    log = cli("-C", memory, "audit", "--json").json
    assert log["whole"] and [entry["act"] for entry in log["entries"]] == ["erase"]
    assert log["entries"][0]["details"]["after"] == receipt["after"]


def test_what_was_erased_comes_back_only_when_it_is_let_in(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "erase", "notes.md", "--yes")
    Path("again.md").write_text(TEXTS["notes.md"])
    refused = cli("-C", memory, "add", "again.md")
    assert refused.code == 2 and "erased" in refused.err and "--allow-erased" in refused.err
    assert cli("-C", memory, "add", "again.md", "--allow-erased").code == 0
    assert [entry["act"] for entry in cli("-C", memory, "audit", "--json").json["entries"]] == ["erase", "readmit"]


def test_protected_tags(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "tag", "v1")
    assert "protected" in cli("-C", memory, "tag", "--protect", "v1").out
    assert cli("-C", memory, "tag", "--json").json["tags"][0]["protected"] is True
    assert cli("-C", memory, "tag", "-d", "v1").code == 2
    assert cli("-C", memory, "tag", "v2", "--protect", "v1").code == 2
    refused = cli("-C", memory, "erase", "notes.md", "--yes")
    assert refused.code == 2 and "v1" in refused.err
    assert "protected: tag v1" in cli("-C", memory, "erase", "notes.md", "--dry-run").out
    assert cli("-C", memory, "erase", "notes.md", "--yes", "--include-protected").code == 0
    assert "already" not in cli("-C", memory, "tag", "--unprotect", "v1").out
    acts = [entry["act"] for entry in cli("-C", memory, "audit", "--json").json["entries"]]
    assert acts == ["protect", "erase", "unprotect"]


def test_an_audit_log_that_was_changed(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "tag", "v1")
    cli("-C", memory, "tag", "--protect", "v1")
    assert "whole: 1 lines" in cli("-C", memory, "audit", "--verify").out
    line = json.loads(path(memory).read_text())
    path(memory).write_text(json.dumps({**line, "author": "nobody"}) + "\n")
    answer = cli("-C", memory, "audit", "--verify")
    assert answer.code == 1 and "line 1" in answer.out
    assert cli("-C", memory, "fsck").code == 1
