"""Several models over one memory, from the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cli_kit import TEXTS, Cli

from megacontext.cli.progress import ingest_progress, regist_progress
from megacontext.engine.events import BlocksRegisted, Committed, ConvertStarted, DocumentFinished, RegistStarted
from megacontext.testing.tiny_bundle import save_tiny_bundle


def layers(cli: Cli, memory: Path) -> dict[str, tuple[int, int]]:
    """Fingerprint → blocks covered and blocks behind."""
    status = cli("-C", memory, "status", "--json").json
    return {each["fingerprint"]: (each["blocks"], each["behind"]) for each in status["layers"]}


def test_two_models_take_turns_over_one_memory(cli: Cli, memory: Path, other_bundle: Path) -> None:
    (mine,) = layers(cli, memory)
    refused = cli("-C", memory, "generate", "def alpha_1", "--model", other_bundle)
    assert refused.code == 4 and f"megacontext regist --model {other_bundle}" in refused.err
    done = cli("-C", memory, "regist", "--model", other_bundle, "--json")
    value = done.json
    assert done.code == 0 and value["made"] == value["blocks"] == cli("-C", memory, "status", "--json").json["blocks"]
    assert layers(cli, memory) == {mine: (value["blocks"], 0), value["fingerprint"]: (value["blocks"], 0)}
    assert cli("-C", memory, "generate", "def alpha_1", "--model", other_bundle, "--max-new-tokens", "3").code == 0
    added = cli("-C", memory, "add", "-", "--model", other_bundle, stdin="more " * 100)
    assert added.code == 0 and mine[:12] in added.err and "regist" in added.err
    behind = layers(cli, memory)[mine][1]
    assert behind > 0
    shown = cli("-C", memory, "status").out
    assert f"({behind} behind)" in shown and cli("-C", memory, "show", "main").out.count(" blocks") == 2
    assert [each["behind"] for each in cli("-C", memory, "show", "main", "--json").json["layers"] if each["behind"]] == [behind]
    assert cli("-C", memory, "generate", "x").code == 4
    caught_up = cli("-C", memory, "regist")
    assert caught_up.code == 0 and f"{behind} of them new" in caught_up.out and not caught_up.err
    assert cli("-C", memory, "fsck").code == 0


def test_a_kept_session_tells_which_gists_stay_behind(cli: Cli, memory: Path, other_bundle: Path) -> None:
    cli("-C", memory, "regist", "--model", other_bundle)
    told = cli("-C", memory, "generate", "x" * 100, "--session", "chat", "--max-new-tokens", "2")
    assert told.code == 0 and "not up to date" in told.err and "regist" in told.err
    assert cli("-C", memory, "regist", "--model", other_bundle, "--branch", "sessions/chat", "--json").json["made"] > 0
    assert "not up to date" not in cli("-C", memory, "generate", "x", "--max-new-tokens", "2").err


def test_a_layer_is_dropped_by_its_first_digits(cli: Cli, memory: Path, other_bundle: Path) -> None:
    (mine,) = layers(cli, memory)
    other = cli("-C", memory, "regist", "--model", other_bundle, "--json").json["fingerprint"]
    gone = cli("-C", memory, "regist", "--remove", mine[:6], "--json").json
    assert gone["removed"] == mine and list(layers(cli, memory)) == [other]
    wrong = cli("-C", memory, "regist", "--remove", mine[:6])
    assert wrong.code == 2 and other in wrong.err
    assert cli("-C", memory, "regist", "--remove", other, "--model", other_bundle).code == 2


def test_without_a_gistnet_there_is_nothing_to_lay(cli: Cli, memory: Path, plain_base: Path) -> None:
    refused = cli("-C", memory, "regist", "--model", plain_base)
    assert refused.code == 2 and "train gist" in refused.err


@pytest.mark.parametrize("what", ["0:1", "1:0"])
def test_a_node_has_the_gists_of_every_layer(cli: Cli, memory: Path, other_bundle: Path, what: str) -> None:
    cli("-C", memory, "regist", "--model", other_bundle)
    gists = cli("-C", memory, "show", what, "--json").json["gists"]
    assert len(gists) == (2 if what == "1:0" else 0)
    assert {each["layer"] for each in gists} <= set(layers(cli, memory))


def test_a_memory_for_another_tokenizer(cli: Cli, memory: Path, other_tokenizer: Path, tmp_path: Path) -> None:
    refused = cli("-C", memory, "generate", "x", "--model", other_tokenizer)
    assert refused.code == 4 and "megacontext convert" in refused.err
    cli("-C", memory, "generate", "def alpha_1", "--session", "chat", "--max-new-tokens", "4")
    done = cli("-C", memory, "convert", "new.mc", "--model", other_tokenizer, "--all", "--history", "--json")
    assert done.code == 0 and done.json["lossless"]
    assert [each["branch"] for each in done.json["branches"]] == ["main", "sessions/chat"]
    for name in TEXTS:
        assert cli("-C", "new.mc", "show", name).out == cli("-C", memory, "show", name).out
    assert cli("-C", "new.mc", "generate", "and", "--session", "chat", "--max-new-tokens", "2").code == 0
    again = cli("-C", memory, "convert", "new.mc", "--model", other_tokenizer)
    assert again.code == 0 and "0 documents converted" in again.out and "all the same" in again.out
    assert cli("-C", "new.mc", "fsck").code == 0


def test_texts_that_came_out_otherwise_are_named(cli: Cli, memory: Path, other_tokenizer: Path, bundle: Path) -> None:
    cli("-C", memory, "convert", "new.mc", "--model", other_tokenizer)
    cli("-C", "new.mc", "label", "project/notes.md", "--add", "mine")
    cli("-C", memory, "generate", "x", "--session", "chat", "--max-new-tokens", "1")
    assert cli("-C", memory, "convert", "new.mc", "--model", bundle).code == 4
    assert cli("-C", memory, "convert", "same.mc", "--model", bundle).code == 2
    assert cli("-C", memory, "convert", "new.mc", "--model", other_tokenizer, "--all", "--branch", "main").code == 2
    assert cli("-C", memory, "convert", "new.mc", "--model", other_tokenizer, "--all").code == 0


def test_what_a_key_value_gist_keeps_is_shown(cli: Cli, sources: Path, tmp_path: Path) -> None:
    model = save_tiny_bundle(tmp_path / "kv", key_value=True)
    cli("init", "kv.mc", "--model", model)
    cli("-C", "kv.mc", "add", sources)
    for node in ("1:0", "2:0"):
        shown = cli("-C", "kv.mc", "show", node)
        kept = cli("-C", "kv.mc", "show", node, "--json").json["kept"]
        assert shown.code == 0 and f'-> "{kept[0]["text"]}"  (score' in shown.out
        assert {"text", "before", "score", "block", "place", "source", "line"} == set(kept[0])
    assert cli("-C", "kv.mc", "show", "0:0", "--json").json["kept"] == []
    assert "keeps" in cli("-C", "kv.mc", "explain", "def alpha_1", "--budget", "160").out
    entries = cli("-C", "kv.mc", "explain", "def alpha_1", "--budget", "160", "--json").json["entries"]
    assert any(each["kept"] for each in entries)


def test_progress_of_regist_and_convert_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with regist_progress() as tell:
        tell(RegistStarted(fingerprint="f", covered=100, blocks=4000))
        tell(BlocksRegisted(blocks=1024, covered=1124, total=4000))
        tell(Committed(commit="c", blocks=1124))
    drawn = terminal.getvalue()
    assert "1124/4000" in drawn and "1,124 settled" in drawn
    with ingest_progress("converting") as tell:
        tell(ConvertStarted(branch="main", documents=2, chars=3000))
        tell(DocumentFinished(uri="a", version=1, blocks=5, tokens=150, size=1500))
    assert "converting" in terminal.getvalue() and "1.5/3.0 kB" in terminal.getvalue()


class Terminal(io.StringIO):
    """What stderr is when somebody looks at it."""

    def isatty(self) -> bool:
        return True
