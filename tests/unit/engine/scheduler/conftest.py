"""Memories by family, and sessions that are closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scheduling import TEXT

from megacontext.engine.events import Listener, nobody
from megacontext.engine.memory import Memory
from megacontext.engine.session import Session
from megacontext.testing.tiny_bundle import save_tiny_bundle


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, quick_disk: None) -> Callable[[str, bool], Memory]:
    """Memories by family and kind of gist, made once."""
    made: dict[tuple[str, bool], Memory] = {}

    def get(family: str, key_value: bool) -> Memory:
        if (family, key_value) not in made:
            folder = tmp_path_factory.mktemp("scheduler")
            bundle = save_tiny_bundle(folder / "bundle", family, key_value=key_value)
            made[family, key_value] = Memory.create(folder / "m.mc", model=bundle)
            made[family, key_value].add(text=TEXT, name="functions")
        return made[family, key_value]

    return get


@pytest.fixture
def memory(shelf: Callable[[str, bool], Memory]) -> Memory:
    return shelf("llama", True)


@pytest.fixture
def opened(memory: Memory) -> Iterator[Callable[..., Session]]:
    """Opens sessions, and closes them at the end."""
    sessions: list[Session] = []

    def open_one(listener: Listener = nobody, budget: int = 192) -> Session:
        sessions.append(memory.session(budget=budget, listener=listener))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()
