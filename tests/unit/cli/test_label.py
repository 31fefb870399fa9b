"""megacontext label and --deny: what carries a denied label shows up in no output of any reading verb."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import Cli

READING = [
    ("status",),
    ("log",),
    ("show", "main"),
    ("show", "src/alpha.py"),
    ("search", "retry policy"),
    ("focus", "class Beta3", "--budget", "512"),
    ("explain", "class Beta3", "--budget", "512"),
    ("label",),
    ("branch",),
]


@pytest.mark.parametrize("verb", READING, ids=lambda words: " ".join(words[:2]))
def test_a_denied_document_is_in_no_output(cli: Cli, memory: Path, verb: tuple[str, ...]) -> None:
    assert cli("-C", memory, "label", "src/beta.py", "--add", "secret").code == 0
    assert cli("-C", memory, "label", "notes.md", "--add", "other").code == 0
    for words in ((*verb, "--deny", "secret"), (*verb, "--json", "--deny", "other", "--deny", "secret")):
        answer = cli("-C", memory, *words)
        assert answer.code == 0, answer.err
        assert "beta" not in (answer.out + answer.err).lower().replace("class beta3", "")


def test_what_is_asked_for_by_name_is_as_if_it_were_not_there(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = cli("-C", memory, "search", "Beta7", "--json").json["hits"][0]["block"]
    cli("-C", memory, "label", "src/beta.py", "--add", "secret")
    monkeypatch.setenv("MEGACONTEXT_DENY", "nothing, secret")
    answer = cli("-C", memory, "show", "src/beta.py")
    assert answer.code == 2 and "no document ends with" in answer.err and "alpha.py" in answer.err
    for node in (f"0:{block}", f"1:{block}", f"2:{block // 32}"):
        answer = cli("-C", memory, "show", node, "--json")
        assert answer.code == 2 and answer.json["error"]["type"] == "AccessDenied"
    assert cli("-C", memory, "add", "conftest.py").code == 2
    assert cli("-C", memory, "label", "src/alpha.py", "--remove", "x").code == 2
    monkeypatch.delenv("MEGACONTEXT_DENY")
    assert "class Beta7" in cli("-C", memory, "show", "src/beta.py").out


def test_lines_tags_and_lists(cli: Cli, memory: Path) -> None:
    answer = cli("-C", memory, "label", "src/alpha.py:4-5", "--add", "private", "--json").json
    assert answer["blocks"]["private"] < answer["of"] and answer["labels"] == []
    shown = cli("-C", memory, "show", "src/alpha.py", "--deny", "private").out
    assert "alpha_1(" not in shown and "alpha_9(" in shown
    answer = cli("-C", memory, "label", "src/alpha.py", "--tag", "code", "--json").json
    assert answer["tags"] == ["code"] and answer["blocks"]["private"]
    assert "private on" in cli("-C", memory, "label", "src/alpha.py").out
    listed = cli("-C", memory, "label", "--json").json["labels"]
    assert listed == [{"label": "private", "blocks": answer["blocks"]["private"]}]
    cli("-C", memory, "label", "src/alpha.py:4-5", "--remove", "private")
    assert "no labels" in cli("-C", memory, "label").err
    assert cli("-C", memory, "label", "src/alpha.py:9999", "--add", "x").code == 2


def test_what_is_added_with_a_label_has_it_at_once(cli: Cli, memory: Path) -> None:
    answer = cli("-C", memory, "add", "-", "--name", "diary", "--label", "secret", stdin="I saw a quagga today.\n")
    assert answer.code == 0, answer.err
    assert "quagga" in cli("-C", memory, "search", "quagga").out
    hidden = cli("-C", memory, "--deny", "secret", "search", "quagga")
    assert "quagga" not in hidden.out and "diary" not in cli("-C", memory, "--deny", "secret", "log").out


def test_a_label_that_nothing_carries_is_no_denial(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no labels yet" in cli("-C", memory, "search", "retry", "--deny", "secret").err
    cli("-C", memory, "label", "src/beta.py", "--add", "confidential")
    cli("-C", memory, "branch", "other")
    cli("-C", memory, "label", "src/beta.py", "--remove", "confidential")
    for words in (("search", "Beta3", "--deny", "confidental"), ("--deny", "confidental", "show", "src/beta.py", "--json")):
        answer = cli("-C", memory, *words)
        assert answer.code == 2 and "did you mean confidential?" in answer.err and "class Beta" not in answer.out
    # A label of another branch counts; the environment may deny what is to come, and warns of what looks like a mistake.
    assert cli("-C", memory, "search", "Beta3", "--deny", "confidential").code == 0
    monkeypatch.setenv("MEGACONTEXT_DENY", "confidental,secret")
    answer = cli("-C", memory, "search", "retry")
    assert answer.code == 0 and "there is confidential" in answer.err and "secret" not in answer.err


def test_deny_where_it_makes_no_sense(cli: Cli, memory: Path) -> None:
    denied = (("gc",), ("init", "new.mc"), ("train", "base"))
    for words in (*(("--deny", "x", *verb) for verb in denied), ("-C", memory, "demo")):
        answer = cli(*words)
        assert answer.code == 2 and f"takes no {words[0]}" in answer.err, answer.err
    assert "--deny" in cli("fsck", "--deny", "x").err
    answer = cli("--deny", "fsck")
    assert answer.code == 2 and "--deny took 'fsck' for its value" in answer.err and "--deny VALUE fsck" in answer.err


def test_a_folder_and_a_pattern_are_labelled_in_one_commit(cli: Cli, memory: Path) -> None:
    found = cli("-C", memory, "label", "src/", "--add", "code", "--json").json["documents"]
    assert [(each["source"], each["labels"]) for each in found] == [
        ("file:project/src/alpha.py", ["code"]),
        ("file:project/src/beta.py", ["code"]),
    ]
    assert cli("-C", memory, "log", "-n", "2", "--json").json["commits"][1]["message"] == "The project"
    assert cli("-C", memory, "label", "*.md", "--tag", "text", "--json").json["tags"] == ["text"]
    assert cli("-C", memory, "label", "project", "--remove", "code").out.count("no labels; tags") == 3
    answer = cli("-C", memory, "label", "scr/", "--add", "x")
    assert answer.code == 2 and not cli("-C", memory, "label", "--json").json["labels"]
