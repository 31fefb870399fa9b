"""Each verb on a small memory: what it prints for people and for programs, and what it leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_kit import TEXTS, Cli

from megacontext import __version__


def branches(cli: Cli, memory: Path) -> list[str]:
    return [each["name"] for each in cli("-C", memory, "branch", "--json").json["branches"]]


def test_from_nothing_to_text(cli: Cli, bundle: Path, sources: Path) -> None:
    made = cli("init", "--model", bundle)
    assert made.code == 0 and "memory.mc" in made.out
    added = cli("add", sources)
    assert added.code == 0 and "documents" in added.out and "tokens/s" in added.out
    status = cli("status", "--json").json
    assert status["documents"] == 3 and status["blocks"] == status["levels"]["1"] and status["tokens"] > 1000
    answer = cli("generate", "def alpha_", "--max-new-tokens", "8")
    assert answer.code == 0 and answer.out.endswith("\n")
    assert cli("status", "--json").json["commit"] == status["commit"]
    assert cli("fsck").code == 0


def test_init_says_what_it_made(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    made = cli("init", "a.mc", "--model", bundle, "--json").json
    assert Path(made["path"]).name == "a.mc" and made["branch"] == "main" and made["missing"] == []
    again = cli("init", "a.mc", "--model", bundle)
    assert again.code == 3 and "already" in again.err
    assert cli("-C", "b.mc", "init", "c.mc", "--model", bundle).code == 2


def test_a_models_folder_is_found_from_everywhere(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    memory = tmp_path / "m.mc"
    assert cli("init", memory, "--model", bundle.name).code == 0
    monkeypatch.chdir(tmp_path)
    assert cli("-C", memory, "add", "-", stdin="some text").code == 0


def test_the_receipt(cli: Cli, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one\n" * 50)
    (tmp_path / "empty.txt").write_text("")
    receipt = cli("-C", memory, "add", "one.txt", "empty.txt", "absent.txt", "--tag", "x", "-m", "More", "--json")
    value = receipt.json
    assert receipt.code == 0
    assert (value["documents"], value["added"], value["tokens"]) == (1, ["file:one.txt"], 201)
    assert {each["uri"] for each in value["skipped"]} == {"file:empty.txt", "absent.txt"}
    assert value["commit"] == cli("-C", memory, "status", "--json").json["commit"]
    assert cli("-C", memory, "log", "-n", "1", "--json").json["commits"][0]["message"] == "More"
    assert cli("-C", memory, "show", "one.txt", "--json").json["tags"] == ["x"]
    again = cli("-C", memory, "add", "one.txt", "empty.txt")
    assert again.code == 0 and "unchanged" in again.out and "skipped file:empty.txt: empty" in again.err
    (tmp_path / "one.txt").write_text("two\n")
    assert cli("-C", memory, "add", "one.txt", "--json").json["updated"] == ["file:one.txt"]


def test_standard_input_has_a_name(cli: Cli, memory: Path) -> None:
    assert cli("-C", memory, "add", "-", "--name", "talk", "--json", stdin="héllo\n").json["added"] == ["text:talk"]
    assert cli("-C", memory, "show", "text:talk").out == "héllo\n"
    assert cli("-C", memory, "add", "-", "--json", stdin="plain").json["added"] == ["stdin:"]
    assert cli("-C", memory, "add", __file__, "--name", "talk").code == 2


def test_the_author_is_in_the_log(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGACONTEXT_AUTHOR", "Ada")
    cli("-C", memory, "add", "-", stdin="x")
    commits = cli("-C", memory, "log", "--json").json["commits"]
    assert commits[0]["author"] == "Ada"
    assert [each["records"] for each in commits] == [4, 3, 0]
    cli("-C", memory, "generate", "def", "--session", "talk", "--max-new-tokens", "2")
    assert cli("-C", memory, "log", "sessions/talk", "-n", "1", "--json").json["commits"][0]["author"] == "Ada"
    assert "Ada" in cli("-C", memory, "log").out


def test_a_commit_counts_the_documents_that_live(cli: Cli, memory: Path) -> None:
    """A version that was replaced and one that was removed are records of the commit, but no documents of the memory."""
    for text in ("one", "two"):
        cli("-C", memory, "add", "-", "--name", "talk", stdin=text)
    cli("-C", memory, "rm", "notes.md")
    shown = cli("-C", memory, "show", "main", "--json").json
    assert (shown["documents"], shown["records"]) == (cli("-C", memory, "status", "--json").json["documents"], 6) == (3, 6)
    assert "documents  3\n" in cli("-C", memory, "show", "main").out


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_documents_text_comes_back(cli: Cli, memory: Path, name: str) -> None:
    assert cli("-C", memory, "show", f"file:project/{name}").out == TEXTS[name]
    assert cli("-C", memory, "show", name, "--json").json["text"] == TEXTS[name]


def test_show_commits_and_nodes(cli: Cli, memory: Path) -> None:
    status = cli("-C", memory, "status", "--json").json
    commit = cli("-C", memory, "show", "main", "--json").json
    assert (commit["kind"], commit["commit"], commit["message"]) == ("commit", status["commit"], "The project")
    assert cli("-C", memory, "show", commit["commit"][:10], "--json").json == commit
    node = cli("-C", memory, "show", "2:1", "--json").json
    assert (node["kind"], node["start"], node["stop"]) == ("node", 1024, 2048)
    (gist,) = node["gists"]
    assert len(gist["norms"]) == 1 and gist["norms"][0] > 0
    assert node["sources"][0]["line"] > 0
    assert cli("-C", memory, "show", "0:0", "--json").json["text"] == TEXTS["notes.md"][:32]
    assert "norm" in cli("-C", memory, "show", "1:0").out
    assert cli("-C", memory, "show", "3:0").code == 2
    assert cli("-C", memory, "show", "1:0", "--at", commit["parents"][0]).code == 2


def test_search(cli: Cli, memory: Path) -> None:
    hits = cli("-C", memory, "search", "retry policy is exponential", "-n", "3", "--json").json["hits"]
    assert 0 < len(hits) <= 3 and hits[0]["source"] == "file:project/notes.md"
    assert "notes.md:" in cli("-C", memory, "search", "-", stdin="retry policy is exponential").out
    assert cli("-C", memory, "search", " ").code == 2
    nothing = cli("-C", memory, "search", "\x01\x02\x03")
    assert nothing.code == 0 and nothing.out == "" and "nothing matches" in nothing.err


def test_focus_changes_nothing_and_tells_all(cli: Cli, memory: Path) -> None:
    before = branches(cli, memory)
    value = cli("-C", memory, "focus", "class Beta7:", "--policy", "lens", "--budget", "400", "--json").json
    assert value["policy"] == "lens" and value["edits"]
    assert all({"edit", "score", "cost", "chosen", "reason"} <= each.keys() for each in value["edits"])
    assert value["after"]["cost"] <= value["after"]["budget"] == 400
    assert value["before"]["cost"] + sum(each["cost"] for each in value["edits"]) == value["after"]["cost"]
    text = cli("-C", memory, "focus", "-", "--policy", "retrieval", stdin="class Beta7:")
    assert "before:" in text.out and "edits by retrieval" in text.out and "raw" in text.out
    assert branches(cli, memory) == before == ["main"]


def test_explain_every_entry(cli: Cli, memory: Path) -> None:
    value = cli("-C", memory, "explain", "class Beta7:", "--json").json
    assert len(value["entries"]) == value["window"]["entries"]
    assert value["entries"][0]["start"] == 0 and value["entries"][0]["source"].startswith("file:project/")
    assert all(each["why"] for each in value["entries"])
    table = cli("-C", memory, "explain", "class Beta7:").out
    assert len(table.splitlines()) == len(value["entries"]) + 1 and "protected tail" in table


def test_generate_is_reproducible_and_leaves_nothing(cli: Cli, memory: Path) -> None:
    words = ("-C", memory, "generate", "def alpha", "--max-new-tokens", "12", "--temperature", "1", "--seed")
    one, two, three = (cli(*words, seed, "--json").json for seed in ("1", "1", "2"))
    assert one["text"] == two["text"] != three["text"]
    assert one["tokens"] <= 12 and one["branch"] is None and one["commit"] is None
    assert one["window"]["cost"] <= one["window"]["budget"]
    assert branches(cli, memory) == ["main"]
    assert cli(*words, "1").out.rstrip("\n") == one["text"].rstrip("\n")


def test_a_named_session_goes_on(cli: Cli, memory: Path) -> None:
    words = ("-C", memory, "generate", "--max-new-tokens", "6", "--session", "draft", "--json")
    first = cli(*words, "def alpha").json
    second = cli(*words).json
    assert second["window"]["tokens"] > first["window"]["tokens"] and second["commit"] != first["commit"]
    assert branches(cli, memory) == ["main", "sessions/draft"]
    commits = cli("-C", memory, "log", "sessions/draft", "--json").json["commits"]
    assert [each["commit"] for each in commits[:2]] == [second["commit"], first["commit"]]
    text = cli("-C", memory, "show", "session:draft", "--at", "sessions/draft").out
    assert text.startswith("def alpha")


@pytest.mark.parametrize("policy", ["auto", "hybrid", "lens", "suffix", "retrieval", "recency", "random"])
def test_every_policy(cli: Cli, memory: Path, policy: str) -> None:
    answer = cli("-C", memory, "generate", "class B", "--policy", policy, "--max-new-tokens", "4", "--json").json
    assert answer["policy"] == ("hybrid" if policy == "auto" else policy)


def test_a_plain_base_works_and_says_what_is_missing(cli: Cli, plain_base: Path, sources: Path) -> None:
    made = cli("init", "--model", plain_base)
    assert "no GistNet" in made.err and "no LensNet" in made.err
    assert cli("add", sources).code == 0
    answer = cli("generate", "def alpha", "--max-new-tokens", "4", "--json")
    assert "no GistNet" in answer.err
    assert answer.json["policy"] == "retrieval" and len(answer.json["missing"]) == 2
    lens = cli("generate", "x", "--policy", "lens")
    assert lens.code == 2 and "no LensNet" in lens.err


def test_branches(cli: Cli, memory: Path) -> None:
    commit = cli("-C", memory, "branch", "try", "--json").json["commit"]
    assert cli("-C", memory, "checkout", "try").code == 0
    cli("-C", memory, "add", "-", stdin="only here")
    assert cli("-C", memory, "status", "--json").json["branch"] == "try"
    assert cli("-C", memory, "checkout", "main").code == 0
    assert cli("-C", memory, "status", "--json").json["commit"] == commit
    assert "* main" in cli("-C", memory, "branch").out
    assert cli("-C", memory, "branch", "-d", "try", "--json").json == {"deleted": "try"}
    assert branches(cli, memory) == ["main"]


def test_env_is_for_bug_reports(cli: Cli, memory: Path) -> None:
    value = cli("-C", memory, "env", "--json").json
    assert value["versions"]["megacontext"] == __version__ and value["versions"]["torch"] != "not installed"
    assert value["machine"]["cpus"] >= 1 and value["torch"]["threads"] >= 1
    assert value["memory"]["documents"] == 3 and value["bundled"]["folder"]
    nowhere = cli("env")
    assert nowhere.code == 0 and "no memory here" in nowhere.out


def test_train_hands_over_and_keeps_stdout_clean(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(path: Path, overrides: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
        print("a library that talks")
        seen.append((path, overrides, quiet))
        return {"output": "somewhere", "steps": 3}

    commands = ModuleType("megacontext.training.commands")
    for part in ("tokenizer", "base", "native", "gist", "lens"):
        setattr(commands, f"run_{part}", run)
    monkeypatch.setitem(sys.modules, "megacontext.training.commands", commands)
    for part in ("tokenizer", "base", "native", "gist", "lens"):
        answer = cli(
            "train",
            part,
            "--config",
            "c.yaml",
            "--set",
            "steps=3",
            "--set",
            "shape={width: 64}",
            "--set",
            "a.b=x=y",
            "-q",
            "--json",
        )
        assert answer.json == {"output": "somewhere", "steps": 3} and "talks" in answer.err
    assert seen == [(Path("c.yaml"), {"steps": 3, "shape": {"width": 64}, "a.b": "x=y"}, True)] * 5
    assert "somewhere" in cli("train", "gist", "--config", "c.yaml").out
    assert cli("train", "gist", "--config", "c.yaml", "--set", "steps").code == 2
    assert cli("train", "gist", "--config", "c.yaml", "--set", "steps={").code == 2
    assert cli("train", "gist").code == 2


def test_train_names_a_missing_configuration(cli: Cli) -> None:
    answer = cli("train", "base", "--config", "absent.yaml", "--json")
    assert answer.code == 2 and answer.json["error"]["type"] == "ConfigError"
