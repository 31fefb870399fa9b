"""A tiny product on disk, and a way to call its command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import TEXTS, Answer, Cli
from typer.testing import CliRunner

from megacontext.cli.main import app
from megacontext.testing.tiny_bundle import save_tiny_bundle


@pytest.fixture(autouse=True, scope="module")
def _disk_that_need_not_be_waited_for() -> Iterator[None]:
    """A sync shows only when the power fails; here it would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer, another base and GistNet."""
    return save_tiny_bundle(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads other tokens."""
    return save_tiny_bundle(tmp_path_factory.mktemp("tokens"), seed=2, pairs=["th", "re", "tu"])


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base for which nothing was trained."""
    return save_tiny_bundle(tmp_path_factory.mktemp("plain"), "gpt2", gistnet=False) / "base"


@pytest.fixture(autouse=True)
def _no_memory_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests run in a folder of their own, without settings of whoever runs them."""
    for name in ("MEGACONTEXT_DIR", "MEGACONTEXT_DENY", "MEGACONTEXT_DEBUG", "MEGACONTEXT_AUTHOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli() -> Cli:
    """Call the command line; stdout and stderr apart."""

    def call(*words: str | Path, stdin: str | bytes | None = None) -> Answer:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, catch_exceptions=False)
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Files to add."""
    root = tmp_path / "project"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A memory with the texts in it. Never written to: take a copy with `memory`."""
    import megacontext

    folder = tmp_path_factory.mktemp("filled")
    for name, text in TEXTS.items():
        (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "project" / name).write_text(text, encoding="utf-8")
    megacontext.init(folder / "m.mc", model=bundle).add(folder / "project", message="The project")
    return folder / "m.mc"


@pytest.fixture
def memory(filled: Path, tmp_path: Path) -> Path:
    """A memory of its own for each test."""
    return Path(shutil.copytree(filled, tmp_path / "m.mc"))
