from __future__ import annotations

from pathlib import Path

from cli_kit import TEXTS, Cli

LONG = "".join(f"Line {n} of a long report about the harbour, the ships and the weather.\n" for n in range(650))


def test_prune_and_restore(cli: Cli, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text(LONG)
    assert cli("-C", memory, "add", "report.txt").code == 0
    cli("-C", memory, "add", "-", "--name", "later", stdin="a few words more " * 20)
    assert cli("-C", memory, "prune", "report.txt").code == 2
    dry = cli("-C", memory, "prune", "report.txt", "--dry-run")
    assert dry.code == 0 and "would prune file:report.txt" in dry.out
    done = cli("-C", memory, "prune", "report.txt", "--yes", "--json").json
    assert done["documents"] == ["file:report.txt"] and done["blocks"] > 0 and done["bytes"] > 0
    unreadable = cli("-C", memory, "show", "report.txt")
    assert unreadable.code == 3 and "megacontext restore" in unreadable.err
    assert cli("-C", memory, "show", "alpha.py").out == TEXTS["src/alpha.py"]
    node = cli("-C", memory, "show", "2:6")
    assert node.code == 0 and "pruned" in node.out
    assert cli("-C", memory, "generate", "def alpha_", "--max-new-tokens", "4").code == 0
    assert cli("-C", memory, "fsck").code == 0
    back = cli("-C", memory, "restore", "report.txt")
    assert back.code == 0 and "restored file:report.txt" in back.out
    assert cli("-C", memory, "show", "report.txt").out == LONG
    assert cli("-C", memory, "prune", "--before", "someday", "--yes").code == 2
    assert cli("-C", memory, "prune", "--before", "2001-01-31", "--yes", "--json").json["documents"] == []
