"""What the hub says about a model becomes one sentence that says what to do, at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from megacontext.errors import ModelNotFound
from megacontext.models import hub, loading


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Hub.asked.append(self.path)
        name = self.path.partition("/api/models/")[2].partition("?")[0]
        gated, private = name.startswith("some/gated"), name.startswith("some/open")
        if name.endswith("/auth-check"):
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        elif gated or private:
            self._answer(200, {}, {"id": name, "gated": "manual" if gated else False})
        elif name.startswith("some/broken"):
            self._answer(500, {})
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _answer(self, code: int, headers: dict[str, str], body: object = None) -> None:
        data = json.dumps(body or {}).encode()
        self.send_response(code)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A hub on this machine, and an empty cache."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        Hub.asked.clear()
        yield endpoint
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some/misspelt", "no model 'some/misspelt'.*check the spelling"),
        ("misspelt", "no model 'misspelt'.*check the spelling"),
        ("some/gated", "some/gated is gated: ask for access"),
        ("some/broken", "not in the local cache, and the hub cannot be asked"),
        ("not//an id", "neither a folder that holds config.json nor a hub id"),
    ],
)
def test_one_question_tells_what_is_wrong(online: str, name: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says):
        loading.load(name, None, torch.device("cpu"))
    assert len(Hub.asked) <= 2


def test_a_hub_that_cannot_be_reached_is_asked_once(online: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelNotFound, match="check the network"):
        hub.reachable("some/open")
    commit = "0" * 40
    snapshot = tmp_path / "models--some--open" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--some--open" / "refs").mkdir()
    (tmp_path / "models--some--open" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(
        hub, "cached", lambda name: hub.try_to_load_from_cache(name, "config.json", cache_dir=tmp_path) is not None
    )
    assert hub.reachable("some/open") is False


def test_what_may_be_had_is_left_to_transformers(online: str) -> None:
    assert hub.reachable("some/open") is True
