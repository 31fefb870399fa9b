from __future__ import annotations

import pytest

from megacontext.engine.memory import Memory
from megacontext.engine.profile import PARTS, Profile
from megacontext.engine.session import SessionConfig
from megacontext.testing.tiny_bundle import save_tiny_bundle


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    place = tmp_path_factory.mktemp("profile")
    made = Memory.create(place / "memory", model=save_tiny_bundle(place / "model"))
    made.add(text="def first(value):\n    return value + 1\n\n" * 40)
    return made


CONFIG = SessionConfig(budget=200, recent=32, refocus_every=4)


def test_a_profiled_turn_says_what_an_unprofiled_one_says(memory: Memory) -> None:
    profile = Profile()
    with memory.session(config=CONFIG) as session:
        plain = "".join(session.generate("first(", max_new_tokens=12, stop_at_eos=False))
    with memory.session(config=CONFIG) as session:
        turn = session.begin_turn("first(", max_new_tokens=12, stop_at_eos=False)
        assert "".join(profile.pieces(session, turn)) == plain
    assert profile.tokens == 12 and profile.refocuses == 2


def test_every_part_gets_its_time_and_all_of_them_are_the_whole(memory: Memory) -> None:
    profile = Profile()
    with memory.session(config=CONFIG) as session:
        turn = session.begin_turn("", max_new_tokens=8, stop_at_eos=False)
        profile.token(session, turn, given=65)
        assert profile.recomputed > 1, "the first token reads the whole window"
        list(profile.pieces(session, turn))
    assert set(profile.seconds) == set(PARTS) and min(profile.seconds.values()) > 0
    assert sum(profile.ms_per_token().values()) * profile.tokens == pytest.approx(1e3 * profile.total, rel=1e-2)
