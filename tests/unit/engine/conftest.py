"""Memories with tiny random models, shared by the engine's tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.memory import Memory
from megacontext.storage import Repository
from megacontext.testing.tiny_bundle import save_tiny_bundle

TEXT = "".join(f"def function_{n}(a, b):\n    return a * {n} + b - {n * 7 % 13}\n\n" for n in range(90))


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[None]:
    """A disk that need not be waited for: a sync shows only when the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder with base, GistNet and LensNet."""
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def kv_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with key/value gists."""
    return save_tiny_bundle(tmp_path_factory.mktemp("kv"), key_value=True)


@pytest.fixture
def kv_memory(tmp_path: Path, kv_bundle: Path) -> Memory:
    """A memory whose gists are keys and values."""
    memory = Memory.create(tmp_path / "kv.mc", model=kv_bundle)
    memory.add(text=TEXT, name="functions")
    return memory


@pytest.fixture(scope="session")
def loaded(tiny_bundle: Path) -> Bundle:
    """The same, loaded."""
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A memory that holds a few thousand tokens; tests get copies."""
    path = tmp_path_factory.mktemp("memory") / "m.mc"
    Memory.create(path, model=tiny_bundle).add(text=TEXT, name="functions")
    return path


@pytest.fixture
def memory(tmp_path: Path, filled: Path, loaded: Bundle) -> Memory:
    """A memory of the test's own."""
    shutil.copytree(filled, tmp_path / "m.mc")
    return Memory(Repository.open(tmp_path / "m.mc"), loaded)
