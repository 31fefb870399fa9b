"""export, import, gc and migrate as people and programs call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_kit import TEXTS, Cli

from megacontext.storage.hashing import sealed, unsealed

INFO = "megacontext.json"


def test_a_memory_as_one_file_and_back(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGACONTEXT_AUTHOR", "Ada")
    cli("-C", memory, "branch", "other")
    cli("-C", memory, "add", "-", "--name", "more", stdin="more\n")
    done = cli("-C", memory, "export", "a.tar", "--branches", "all", "--history", "--json").json
    assert done["size"] == Path("a.tar").stat().st_size and set(done["branches"]) == {"main", "other"} and done["behind"] == []
    again = cli("-C", memory, "export", "a.tar")
    assert again.code == 2 and "there already" in again.err
    made = cli("import", "a.tar", "copy.mc", "--json").json
    assert made["branches"] == done["branches"] and made["new"] == made["objects"] == done["objects"]
    for name, text in TEXTS.items():
        assert cli("-C", "copy.mc", "show", name).out == text
    logs = [cli("-C", each, "log", "--json").json["commits"] for each in (memory, "copy.mc")]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert cli("-C", "copy.mc", "fsck").code == 0
    assert [each["author"] for each in cli("-C", "copy.mc", "audit", "--json").json["entries"]] == ["Ada"]
    assert "exported other to b.tar" in cli("-C", memory, "export", "b.tar", "--at", "other").out


def test_beside_what_is_there(cli: Cli, memory: Path, bundle: Path, tmp_path: Path) -> None:
    assert cli("-C", memory, "export", "a.tar").code == 0
    assert cli("init", "mine.mc", "--model", bundle).code == 0
    cli("-C", "mine.mc", "add", "-", "--name", "own", stdin="own\n")
    told = cli("-C", "mine.mc", "import", "a.tar")
    assert told.code == 2 and "--as" in told.err
    assert "theirs/main" in cli("-C", "mine.mc", "import", "a.tar", "--as", "theirs").out
    assert {each["name"] for each in cli("-C", "mine.mc", "branch", "--json").json["branches"]} == {"main", "theirs/main"}
    assert cli("-C", "mine.mc", "show", "own").out == "own\n"
    assert cli("-C", "mine.mc", "show", "notes.md", "--at", "theirs/main").out == TEXTS["notes.md"]
    assert cli("-C", "mine.mc", "fsck").code == 0


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, None])
def test_what_is_no_archive_is_one_line(cli: Cli, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.tar").write_bytes(content)
    done = cli("import", "a.tar", "new.mc", "--json")
    assert done.code == (2 if content is None else 3)
    assert done.json["error"]["type"] == ("InvalidInput" if content is None else "ArchiveError")
    assert not (tmp_path / "new.mc").exists() and len(done.err.splitlines()) == 1


def test_through_a_pipe(memory: Path, tmp_path: Path) -> None:
    program = f"{sys.executable} -m megacontext.cli.main"
    script = f"set -o pipefail; {program} -C {memory} export - | gzip | gunzip | {program} import - copy.mc"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "imported into" in done.stdout and done.stderr == ""
    assert (tmp_path / "copy.mc" / INFO).is_file()


def test_stdout_holds_one_thing(cli: Cli, memory: Path) -> None:
    assert cli("-C", memory, "export", "-", "--json").code == 2


def test_gc_gives_room_back(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "checkout", "-b", "draft")
    cli("-C", memory, "add", "-", "--name", "draft", stdin="draft\n" * 500)
    cli("-C", memory, "checkout", "main")
    cli("-C", memory, "branch", "-d", "draft")
    assert cli("-C", memory, "gc", "--json").json["objects"] == 0
    told = cli("-C", memory, "gc", "--dry-run", "--grace", "0", "--json").json
    assert not told["removed"] and told["kinds"]["commit"]["objects"] == 1 and told["bytes"] > 0
    assert "would remove" in cli("-C", memory, "gc", "--dry-run", "--grace", "0").out
    done = cli("-C", memory, "gc", "--grace", "0")
    assert (
        done.code == 0 and f"removed {told['objects']:,} objects, {told['bytes']:,} bytes" in done.out and "commit" in done.out
    )
    assert cli("-C", memory, "fsck", "--json").json["unreachable"] == 0
    assert cli("-C", memory, "audit", "--json").json["entries"][-1]["act"] == "gc"
    assert cli("-C", memory, "gc", "--grace", "-1").code == 2


def test_migrate(cli: Cli, memory: Path) -> None:
    assert "nothing to do" in cli("-C", memory, "migrate").out
    (memory / INFO).write_bytes(sealed({**unsealed((memory / INFO).read_bytes()), "format": 1}))
    assert cli("-C", memory, "show", "notes.md").out == TEXTS["notes.md"]
    told = cli("-C", memory, "add", "-", stdin="x")
    assert told.code == 3 and "megacontext migrate" in told.err
    assert "would bring" in cli("-C", memory, "migrate", "--dry-run").out
    done = cli("-C", memory, "migrate", "--json").json
    assert (done["from"], done["to"], done["changed"]) == (1, 2, [INFO]) and (memory / done["backup"] / INFO).is_file()
    assert cli("-C", memory, "add", "-", stdin="x").code == 0 and cli("-C", memory, "fsck").code == 0
    (memory / INFO).write_bytes(sealed({**unsealed((memory / INFO).read_bytes()), "format": 3}))
    for verb in (["status"], ["fsck"], ["gc"], ["migrate"], ["export", "x.tar"]):
        newer = cli("-C", memory, *verb)
        assert newer.code == 3 and "upgrade megacontext" in newer.err and len(newer.err.splitlines()) == 1
