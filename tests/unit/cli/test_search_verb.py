"""megacontext search: modes, filters, and whatever is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import Cli


@pytest.mark.parametrize("mode", ["text", "tokens", "gists", "hybrid"])
def test_every_mode_prints_hits_of_one_form(cli: Cli, memory: Path, mode: str) -> None:
    answer = cli("-C", memory, "search", "retry policy", "--mode", mode, "--source", "notes.md", "--json").json
    assert answer["mode"] == mode and answer["query"] == "retry policy" and answer["hits"]
    assert {"block", "score", "source", "line", "text", "ranks"} == set(answer["hits"][0])
    assert all(hit["source"].endswith("notes.md") for hit in answer["hits"])
    said = cli("-C", memory, "search", "retry policy", "--mode", mode).out
    assert ("text #1" in said) == (mode == "hybrid") and ("score" in said) == (mode != "hybrid")


def test_filters(cli: Cli, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("retry policy of old\n")
    cli("-C", memory, "add", tmp_path / "old.txt", "--tag", "old")

    def sources(*words: str) -> set[str]:
        hits = cli("-C", memory, "search", "retry policy", "-n", "200", *words, "--json").json["hits"]
        return {hit["source"].rpartition("/")[2].removeprefix("file:") for hit in hits}

    assert sources() == {"old.txt", "notes.md", "beta.py"}
    assert sources("--source", "*.py") == {"beta.py"}
    assert sources("--tag", "old") == {"old.txt"} and sources("--tag", "old", "--tag", "new") == set()
    assert sources("--until", "2001-01-01") == set() and sources("--since", "2001-01-01T10:00") == sources()
    assert sources("--at", "main", "--source", "old.txt") == {"old.txt"}
    assert cli("-C", memory, "search", "x", "--since", "yesterday").code == 2


TYPED = ['"', "AND", "NEAR(", "a* OR", '"a" AND', "-x", ":", "'; DROP TABLE pieces; --", "(", "\x00", "^"]


@pytest.mark.parametrize("query", TYPED)
def test_whatever_is_typed_is_looked_for_and_no_error(cli: Cli, memory: Path, query: str) -> None:
    assert cli("-C", memory, "search", "--", query).code in (0, 2)  # 2: nothing but white space
    assert cli("-C", memory, "search", "--json", "--", f"retry {query} policy").json["hits"]


def test_phrases_are_required(cli: Cli, memory: Path) -> None:
    hits = cli("-C", memory, "search", '"policy is" retry', "--json").json["hits"]
    assert {hit["source"].rpartition("/")[2] for hit in hits} == {"notes.md"}


def test_without_a_gistnet_hybrid_says_so(cli: Cli, tmp_path: Path, plain_base: Path) -> None:
    cli("-C", tmp_path / "p.mc", "init", "--model", plain_base)
    cli("-C", tmp_path / "p.mc", "add", "-", "--name", "note", stdin="retry later")
    answer = cli("-C", tmp_path / "p.mc", "search", "retry", "--mode", "hybrid")
    assert "no GistNet" in answer.err and "text:note" in answer.out
    assert cli("-C", tmp_path / "p.mc", "search", "retry", "--mode", "gists").code == 2
