"""The scheduler, round by round: nothing here waits for time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scheduling import BUDGETS, KINDS, TEXT, finish, small

from megacontext.core import invariants
from megacontext.engine.batch_reader import BatchReader, Reading
from megacontext.engine.bundle import Bundle
from megacontext.engine.memory import Memory
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.scheduler import Scheduler, SchedulerConfig
from megacontext.engine.session import Session
from megacontext.errors import (
    BudgetError,
    ConfigError,
    QueueFull,
    SessionClosed,
)

pytestmark = pytest.mark.usefixtures("quick_disk")


# -- the same alone and together --------------------------------------------------------------------

prompts = st.lists(st.sampled_from(["def function_3(", "return a * ", TEXT[200:500], "x", TEXT[:90]]), min_size=2, max_size=4)


@settings(max_examples=4, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    kind=st.sampled_from(KINDS),
    texts=prompts,
    rows=st.integers(2, 4),
    turn=st.sampled_from([5, 256]),
    chunk=st.sampled_from([24, 512]),
)
def test_greedy_output_is_the_same_alone_and_in_a_batch(
    shelf: Callable[[str, bool], Memory], kind: tuple[str, bool], texts: list[str], rows: int, turn: int, chunk: int
) -> None:
    """With windows of different lengths that refocus meanwhile, more sessions than rows, rows given up and taken again."""
    same_alone_and_together(shelf(*kind), texts, rows=rows, turn=turn, chunk=chunk)


@pytest.mark.parametrize(("family", "key_value"), KINDS)
def test_every_family_says_the_same_alone_and_in_a_batch(
    shelf: Callable[[str, bool], Memory], family: str, key_value: bool
) -> None:
    same_alone_and_together(shelf(family, key_value), ["def function_3(", TEXT[:90], "x"], rows=2, turn=7, chunk=24)


def same_alone_and_together(memory: Memory, texts: list[str], **settings: int) -> None:
    alone, budgets = [], [BUDGETS[number % 3] for number in range(len(texts))]
    for text, budget in zip(texts, budgets, strict=True):
        with memory.session(budget=budget) as session:
            alone.append("".join(session.generate(text, max_new_tokens=18, stop_at_eos=False)))
    scheduler = small(memory, **settings)
    sessions = [memory.session(budget=budget) for budget in budgets]
    requests = [
        scheduler.submit(session, text, max_new_tokens=18, stop_at_eos=False)
        for session, text in zip(sessions, texts, strict=True)
    ]
    finish(scheduler)
    scheduler.close()
    for session in sessions:
        invariants.check_window(session.window)
        session.close()
    assert [request.result().text for request in requests] == alone
    assert scheduler.stats.tokens == 18 * len(texts)


@pytest.mark.parametrize(("family", "key_value"), KINDS)
def test_logits_in_a_batch_are_those_of_a_session_alone(
    shelf: Callable[[str, bool], Memory], family: str, key_value: bool
) -> None:
    """In one pass: windows of other lengths, with other gists, one of them read in two pieces."""
    memory = shelf(family, key_value)
    reader = BatchReader(memory.bundle.base, rows=3, slots=320)
    sessions, alone = [], []
    for row, budget in enumerate(BUDGETS):
        session = memory.session(budget=budget, policy="random")
        session.append(TEXT[row * 70 : row * 200 + 90])
        session.refocus(unlimited=True)
        alone.append(session.logits())
        session.house(lambda row=row: reader.open(row))  # type: ignore[misc]
        sessions.append(session)
    readings = [Reading(session) for session in sessions]
    reader.read(readings[2:], [40])
    together = reader.read(readings, [reading.left for reading in readings])
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-3)
    assert reader.nbytes > 0 and not any(reading.left for reading in readings)
    for session in sessions:
        session.close()


def test_sampled_output_is_the_same_too_and_is_in_the_memory(memory: Memory, opened: Callable[..., Session]) -> None:
    sampling = SamplingConfig(temperature=1.0, seed=5)
    alone = "".join(opened().generate("def f", max_new_tokens=20, sampling=sampling))
    scheduler, session = small(memory), opened()
    requests = [scheduler.submit(each, "def f", max_new_tokens=20, sampling=sampling) for each in (session, opened(), opened())]
    finish(scheduler)
    assert [request.result().text for request in requests] == [alone] * 3
    session.commit()
    view = memory.snapshot(session.branch)
    assert memory.text(list(view.documents.live())[-1], view) == "def f" + alone


def test_a_second_turn_goes_on_where_the_first_ended_and_finds_its_row(memory: Memory, opened: Callable[..., Session]) -> None:
    alone = opened()
    expected = ["".join(alone.generate(text, max_new_tokens=9, stop_at_eos=False)) for text in ("def a", "def b")]
    scheduler, session = small(memory), opened()
    requests = [scheduler.submit(session, text, max_new_tokens=9, stop_at_eos=False) for text in ("def a", "def b")]
    finish(scheduler)
    assert [request.result().text for request in requests] == expected
    assert session.cache_stats == alone.cache_stats
    scheduler.release(session)
    assert "".join(session.generate("def c", max_new_tokens=3))


# -- fairness and limits ----------------------------------------------------------------------------


def test_a_long_read_delays_others_by_a_chunk_only(memory: Memory, opened: Callable[..., Session]) -> None:
    scheduler, decoding, reading = small(memory, chunk=32), opened(), opened(budget=320)
    first = scheduler.submit(decoding, "x", max_new_tokens=200, stop_at_eos=False)
    while not first.tokens:
        scheduler.step()
    second = scheduler.submit(reading, TEXT, max_new_tokens=1, stop_at_eos=False)
    rounds = 0
    while not second.tokens:
        before, slots, passes = first.tokens, scheduler.stats.slots, scheduler.stats.passes
        due = decoding.due_refocus or first.tokens == 0
        scheduler.step()
        rounds += 1
        assert scheduler.stats.slots - slots <= 32 + 1 and scheduler.stats.passes - passes <= 2
        assert due or first.tokens >= before
    assert rounds > 20 and first.tokens > rounds / 2


def test_nobody_starves_with_one_row(memory: Memory, opened: Callable[..., Session]) -> None:
    scheduler = small(memory, rows=1, turn=4)
    requests = [scheduler.submit(opened(), f"def f{n}", max_new_tokens=40, stop_at_eos=False) for n in range(3)]
    while not all(request.tokens for request in requests):
        scheduler.step()
    assert max(request.tokens for request in requests) <= 3 * 4
    assert scheduler.running == 1 and scheduler.waiting == 2
    finish(scheduler)
    assert [request.result().tokens for request in requests] == [40] * 3


def test_sessions_take_turns_however_many_requests_one_of_them_has(memory: Memory, opened: Callable[..., Session]) -> None:
    scheduler, greedy, modest = small(memory, rows=1), opened(), opened()
    many = [scheduler.submit(greedy, "a", max_new_tokens=2) for _ in range(4)]
    one = scheduler.submit(modest, "b", max_new_tokens=2)
    while one.outcome is None:
        scheduler.step()
    assert sum(request.outcome is not None for request in many) == 1


def test_the_line_is_bounded(memory: Memory, opened: Callable[..., Session]) -> None:
    scheduler = small(memory, queue=3, per_session=2)
    session = opened()
    requests = [scheduler.submit(session, "a", max_new_tokens=1) for _ in range(2)]
    with pytest.raises(QueueFull, match="of this session"):
        scheduler.submit(session, "a")
    requests.append(scheduler.submit(opened(), "b", max_new_tokens=1))
    with pytest.raises(QueueFull, match="try again"):
        scheduler.submit(opened(), "c")
    finish(scheduler)
    assert scheduler.submit(session, "again", max_new_tokens=1).result().tokens <= 1


def test_what_cannot_be_served_is_refused_at_once(memory: Memory, opened: Callable[..., Session], loaded: Bundle) -> None:
    scheduler = small(memory, slots=200)
    with pytest.raises(BudgetError, match="more slots"):
        scheduler.submit(opened(budget=256), "a")
    with pytest.raises(ConfigError, match="another model"):
        Scheduler(loaded).submit(opened(), "a")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        scheduler.submit(opened(), "a", max_new_tokens=0)
    with pytest.raises(ConfigError, match="at least 1"):
        SchedulerConfig(rows=0)
    session = opened()
    session.close()
    with pytest.raises(SessionClosed):
        scheduler.submit(session, "a")
    assert scheduler.waiting == 0
