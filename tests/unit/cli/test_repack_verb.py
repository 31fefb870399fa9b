from __future__ import annotations

from pathlib import Path

from cli_kit import TEXTS, Cli


def test_repack_leaves_out_what_is_dead(cli: Cli, memory: Path) -> None:
    before = cli("-C", memory, "status", "--json").json
    assert "nothing to repack" in cli("-C", memory, "repack").out
    removed = cli("-C", memory, "rm", "alpha.py", "--json").json
    dry = cli("-C", memory, "repack", "--all", "--dry-run", "--json").json
    assert (dry["freed"], dry["dry_run"], dry["commit"]) == (removed["blocks"], True, removed["commit"])
    done = cli("-C", memory, "repack", "--all", "-m", "Tidy")
    assert done.code == 0 and f"{removed['blocks']:,} dead blocks" in done.out
    status = cli("-C", memory, "status", "--json").json
    assert (status["dead"], status["blocks"]) == (0, before["blocks"] - removed["blocks"])
    assert cli("-C", memory, "show", "beta.py").out == TEXTS["src/beta.py"]
    assert cli("-C", memory, "show", "alpha.py", "--at", before["commit"]).out == TEXTS["src/alpha.py"]
    assert cli("-C", memory, "log", "-n", "1", "--json").json["commits"][0]["message"] == "Tidy"
    assert cli("-C", memory, "search", "retry policy", "--json").json["hits"]
    assert cli("-C", memory, "fsck").code == 0
