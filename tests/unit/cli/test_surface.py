"""What is around the verbs: which memory is meant, help, the reference page, start-up, real processes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from cli_kit import Cli
from typer.testing import CliRunner

from megacontext import __version__
from megacontext.cli.main import app
from megacontext.cli.reference import reference

ROOT = Path(__file__).parents[3]
VERBS = (
    "init", "add", "rm", "label", "status", "log", "show", "search", "focus", "explain", "generate", "replay", "branch",
    "checkout", "tag", "diff", "merge", "revert", "regist", "convert", "repack", "prune", "restore", "erase", "audit", "export",
    "import", "fsck", "gc", "migrate", "env", "train", "demo", "bench",
)  # fmt: skip


def run(*words: str | Path, code: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "megacontext.cli.main", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, env=environment, check=False)


def test_the_memory_around_the_current_folder(cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    cli("init", "--model", bundle)
    cli("init", "other.mc", "--model", bundle)

    def found(*words: str) -> str:
        return Path(cli(*words, "status", "--json").json["path"]).name

    assert found() == "memory.mc"
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert found() == "memory.mc"
    assert cli("status", "-C", "../../other.mc").code == 0
    assert found("-C", "../../other.mc") == "other.mc"
    monkeypatch.setenv("MEGACONTEXT_DIR", str(tmp_path / "other.mc"))
    assert found() == "other.mc"
    assert found("-C", "../../memory.mc") == "memory.mc"
    monkeypatch.delenv("MEGACONTEXT_DIR")
    monkeypatch.chdir(tmp_path / "other.mc" / "objects")
    assert found() == "other.mc"


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"megacontext {__version__}\n"
    text = cli("--help").out
    assert all(f" {verb} " in text for verb in VERBS)
    assert cli().code == 2
    for verb in VERBS[:-3]:
        page = cli(verb, "--help").out
        assert "--json" in page and "-C" in page and "Example" in page and f"megacontext {verb}" in page


def test_every_command_and_option_has_a_help_text() -> None:
    def check(command: typer.core.TyperCommand | typer.core.TyperGroup, path: str) -> None:
        assert command.help and command.help.strip().split("\n")[0].endswith((".", ":")), path
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{path} {parameter.name}"
        context = command.make_context(path, [], resilient_parsing=True)
        for name in command.list_commands(context) if isinstance(command, typer.core.TyperGroup) else ():
            check(command.get_command(context, name), f"{path} {name}")

    check(typer.main.get_command(app), "megacontext")


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference(), (
        "run: python -m megacontext.cli.reference > docs/cli.md"
    )


def test_light_commands_load_no_heavy_library(memory: Path) -> None:
    code = f"""
import sys
from megacontext.cli.main import app
for words in ("status", "log --json", "show notes.md", "search retry", "branch", "tag", "diff", "show main", "fsck", "audit"):
    words = words.split()
    try:
        app(["-C", {str(memory)!r}, *words])
    except SystemExit as end:
        assert not end.code, words
    heavy = {{"torch", "transformers", "scipy", "fastapi"}} & set(sys.modules)
    assert not heavy, (words, heavy)
    if words == ["status"]:
        assert "rich" not in sys.modules, "status got slower"
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr


def test_what_a_process_prints(memory: Path) -> None:
    done = run("-C", memory, "status", "--json")
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["documents"] == 3
    failed = run("-C", memory, "log", "nope")
    assert failed.returncode == 2 and failed.stdout == "" and failed.stderr.startswith("error: no branch")
    assert len(failed.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error(memory: Path) -> None:
    script = f"{sys.executable} -m megacontext.cli.main -C {memory} show alpha.py | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141) and done.stdout == "d" and done.stderr == ""


def test_an_output_that_is_not_unicode(memory: Path) -> None:
    text = run("-C", memory, "show", "notes.md", PYTHONIOENCODING="ascii")
    assert text.returncode == 0 and "Gr\\xfc" in text.stdout
    as_json = run("-C", memory, "show", "notes.md", "--json", PYTHONIOENCODING="ascii")
    assert "ü" in json.loads(as_json.stdout)["text"]
    strip = CliRunner(charset="ascii").invoke(app, ["-C", str(memory), "focus", "class"], catch_exceptions=False)
    assert strip.exit_code == 0 and "#" in strip.stdout


def test_progress_is_drawn_on_a_terminal_and_stdout_is_one_document(memory: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("new text\n" * 400)
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "megacontext.cli.main", "-C", str(memory), "add", "new.txt", "absent", "--json"],
        stdout=subprocess.PIPE,
        stderr=inner,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(inner)
        drawn = b""
        try:
            while piece := os.read(outer, 4096):
                drawn += piece
        except OSError:  # Linux reports the end of a terminal as an error
            pass
        out = process.communicate()[0]
    assert json.loads(out)["documents"] == 1
    assert b"adding" in drawn and b"tokens" in drawn
