"""The verbs of history: log, tag, checkout, diff, show, merge, revert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_kit import Cli


@pytest.fixture
def forked(cli: Cli, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory whose branch `side` has a document of its own and another text of one."""
    monkeypatch.setenv("MEGACONTEXT_DIR", str(memory))
    cli("add", "-", "--name", "shared", stdin="one\ntwo\nthree\n")
    cli("checkout", "-b", "side")
    cli("add", "-", "--name", "shared", "-m", "A longer one", stdin="one\n2\nthree")
    cli("add", "-", "--name", "new", "-m", "Something new", stdin="new\n")
    return memory


def documents(cli: Cli, *words: str) -> dict[str, Any]:
    value = cli("diff", *words, "--json").json
    return {kind: value[kind] for kind in ("added", "changed", "removed")}


def test_log_says_what_when_by_whom_and_from_where(cli: Cli, forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGACONTEXT_AUTHOR", "Ada")
    cli("rm", "text:new")
    newest = cli("log", "-n", "3", "--json").json["commits"]
    assert [(each["added"], each["changed"], each["removed"]) for each in newest] == [
        ([], [], ["text:new"]),
        (["text:new"], [], []),
        ([], ["text:shared"], []),
    ]
    assert newest[0]["author"] == "Ada" and newest[1]["message"] == "Something new"
    text = cli("log", "-n", "3").out.splitlines()
    assert text[0].startswith(newest[0]["commit"][:12]) and "Ada" in text[0]
    assert "1 removed" in text[1] and text[2].strip() == "- text:new"
    assert cli("log", "-n", "1", "--documents", "0").out.count("\n") == 2
    whole = cli("log", "--documents", "1").out
    assert "+ file:project/notes.md" in whole and "… and 2 more" in whole


def test_tags_stay_and_old_states_can_be_read(cli: Cli, forked: Path) -> None:
    commit = cli("tag", "v1", "main", "--json").json["commit"]
    (listed,) = cli("tag", "--json").json["tags"]
    assert (listed["name"], listed["commit"]) == ("v1", commit)
    assert "v1" in cli("tag").out and cli("tag", "v1").code == 2
    assert cli("show", "text:shared").out == "one\n2\nthree"
    assert cli("show", "text:shared", "--at", "v1").out == "one\ntwo\nthree\n"
    assert cli("show", "text:new", "--at", "v1").code == 2
    assert cli("status", "--at", "v1", "--json").json["documents"] == 4 and cli("status", "--json").json["documents"] == 5
    assert cli("search", "three", "--at", "v1", "--json").json["hits"][0]["source"] == "text:shared"
    refused = cli("checkout", "v1")
    assert refused.code == 2 and "checkout -b NAME v1" in refused.err
    assert cli("checkout", "other", "v1").code == 2
    assert cli("checkout", "-b", "other", "v1", "--json").json == {"current": "other", "commit": commit}
    assert cli("tag", "-d", "v1", "--json").json == {"deleted": "v1"}
    assert cli("tag", "x", "-d", "v1").code == 2 and cli("tag", "-d", "v1").code == 2
    assert cli("show", commit[:12], "--json").json["commit"] == commit


def test_diff(cli: Cli, forked: Path) -> None:
    assert documents(cli) == {"added": ["text:new"], "changed": [], "removed": []}
    assert documents(cli, "main") == {"added": ["text:new"], "changed": ["text:shared"], "removed": []}
    assert documents(cli, "side", "main") == {"added": [], "changed": ["text:shared"], "removed": ["text:new"]}
    value = cli("diff", "main", "--json").json
    assert (value["blocks_added"], value["blocks_removed"]) == (2, 1)
    assert {"source": "text:shared", "before": 1, "after": 2, "blocks_removed": 1, "blocks_added": 1} in value["documents"]
    text = cli("diff", "main").out
    assert "+ text:new" in text and "~ text:shared  (version 1 → 2, +1 -1 blocks)" in text
    assert cli("diff", "main", "main").out == "" and cli("diff", "nowhere").code == 2


def test_diff_of_a_text(cli: Cli, forked: Path) -> None:
    assert cli("diff", "main", "side", "--text", "shared").out == (
        "--- text:shared\tmain\n+++ text:shared\tside\n@@ -1,3 +1,3 @@\n one\n-two\n-three\n+2\n+three\n"
        "\\ No newline at end of file\n"
    )
    assert cli("diff", "side", "main", "--text", "text:new").out == ("--- text:new\tside\n+++ /dev/null\n@@ -1 +0,0 @@\n-new\n")
    assert cli("diff", "main", "main", "--text", "shared", "--json").json["diff"] == ""
    assert cli("diff", "--text", "nothing").code == 2


def test_show_says_what_a_commit_changed_and_what_of_a_node_is_dead(cli: Cli, forked: Path) -> None:
    value = cli("show", "side", "--json").json
    assert (value["added"], value["changed"], value["removed"]) == (["text:new"], [], [])
    text = cli("show", "side").out
    assert "1 added" in text and "+ text:new" in text
    blocks = cli("status", "--json").json["blocks"]
    assert cli("show", f"0:{blocks - 3}", "--json").json["dead"] == 1
    assert "1 of 1 blocks" in cli("show", f"1:{blocks - 3}").out
    assert cli("show", f"0:{blocks - 1}", "--json").json["dead"] == 0


def test_merge(cli: Cli, forked: Path) -> None:
    cli("checkout", "main")
    cli("add", "-", "--name", "ours", stdin="ours\n")
    merged = cli("merge", "side", "-m", "All of it", "--json").json
    assert (merged["added"], merged["changed"], merged["removed"]) == (["text:new"], ["text:shared"], [])
    assert not merged["fast_forward"] and merged["commit"] == cli("status", "--json").json["commit"]
    assert cli("show", "text:shared").out == "one\n2\nthree"
    top = cli("log", "-n", "1", "--json").json["commits"][0]
    assert top["message"] == "All of it" and len(top["parents"]) == 2 and top["added"] == ["text:new"]
    assert "merge of" in cli("log", "-n", "1").out
    again = cli("merge", "side")
    assert again.code == 0 and "nothing to merge" in again.out
    cli("checkout", "side")
    assert "moved ahead" in cli("merge", "main").out
    assert cli("fsck").code == 0


def test_a_conflict_is_told_and_decided(cli: Cli, forked: Path) -> None:
    cli("checkout", "main")
    cli("add", "-", "--name", "shared", stdin="ours\n")
    before = cli("status", "--json").json
    refused = cli("merge", "side", "--json")
    assert refused.code == 1 and refused.json["error"]["sources"] == ["text:shared"]
    assert refused.json["error"]["type"] == "MergeConflict" and "--both" in refused.err
    assert cli("status", "--json").json == before
    assert cli("merge", "side", "--ours", "--both").code == 2
    assert "text:shared" in cli("merge", "side", "--both").out
    assert cli("show", "text:shared@side").out == "one\n2\nthree" and cli("show", "text:shared").out == "ours\n"


def test_revert(cli: Cli, forked: Path) -> None:
    changed = cli("log", "--json").json["commits"][1]["commit"]
    reverted = cli("revert", changed[:12], "--json").json
    assert reverted["changed"] == ["text:shared"]
    assert cli("show", "text:shared").out == "one\ntwo\nthree\n"
    assert cli("log", "-n", "1", "--json").json["commits"][0]["message"] == f"Revert {changed[:12]}: A longer one"
    assert "nothing to undo" in cli("revert", changed[:12]).out
    cli("add", "-", "--name", "new", stdin="newer\n")
    refused = cli("revert", cli("log", "-n", "3", "--json").json["commits"][2]["commit"])
    assert refused.code == 1 and "changed again" in refused.err


def test_a_session_is_merged(cli: Cli, memory: Path) -> None:
    cli("-C", memory, "generate", "def alpha", "--max-new-tokens", "4", "--session", "draft")
    merged = cli("-C", memory, "merge", "sessions/draft", "--json").json
    assert merged["added"] == ["session:draft"]
    assert cli("-C", memory, "show", "session:draft").out.startswith("def alpha")
