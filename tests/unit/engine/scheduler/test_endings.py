"""How requests end: cancelled, late, broken, shut down; threads, event loops, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scheduling import BUDGETS, TEXT, finish, is_free, small

from megacontext.core import invariants
from megacontext.engine.batch_focus import score_together
from megacontext.engine.bundle import load_bundle
from megacontext.engine.events import Event, Listener, Refocused, TokenDecoded, nobody
from megacontext.engine.memory import Memory
from megacontext.engine.policies.lens import Lens
from megacontext.engine.request import Ended, Request
from megacontext.engine.scheduler import Scheduler, SchedulerConfig
from megacontext.engine.session import Session
from megacontext.errors import (
    DeadlineExceeded,
    RequestCancelled,
    SchedulerClosed,
    SessionClosed,
    StorageFull,
)

pytestmark = pytest.mark.usefixtures("quick_disk")


# -- endings ----------------------------------------------------------------------------------------


def three(memory: Memory, opened: Callable[..., Session], listener: Listener = nobody) -> tuple[Scheduler, list[Request]]:
    """A scheduler with three requests of 20 tokens, the second of a session with a listener."""
    scheduler = small(memory)
    sessions = [opened(), opened(listener), opened()]
    return scheduler, [scheduler.submit(session, "def f(", max_new_tokens=20, stop_at_eos=False) for session in sessions]


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_cancelling_at_any_round_ends_one_and_leaves_the_others(
    memory: Memory, opened: Callable[..., Session], after: int
) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    scheduler, requests = three(memory, opened)
    for _ in range(after):
        scheduler.step()
    requests[1].cancel()
    finish(scheduler)
    outcome = requests[1].outcome
    assert outcome is not None and outcome.ended is Ended.CANCELLED and alone.startswith(outcome.text.rstrip("\ufffd"))
    with pytest.raises(RequestCancelled):
        list(requests[1])
    assert [requests[0].result().text, requests[2].result().text] == [alone, alone]
    # What was decoded stays, and the session can go on.
    invariants.check_window(requests[1].session.window)
    assert scheduler.submit(requests[1].session, "", max_new_tokens=2, stop_at_eos=False).result().tokens == 2


def test_deadlines(memory: Memory, opened: Callable[..., Session]) -> None:
    now = [0.0]
    scheduler = Scheduler(memory.bundle, SchedulerConfig(rows=1, slots=320), clock=lambda: now[0])
    running = scheduler.submit(opened(), "a", max_new_tokens=500, deadline=10, stop_at_eos=False)
    waiting = scheduler.submit(opened(), "b", deadline=10)
    endless = scheduler.submit(opened(), "c", max_new_tokens=2, stop_at_eos=False)
    for _ in range(5):
        scheduler.step()
    assert running.tokens and not waiting.tokens
    now[0] = 10.0
    finish(scheduler)
    assert running.outcome and waiting.outcome and running.outcome.ended is waiting.outcome.ended is Ended.EXPIRED
    assert endless.result().ended is Ended.LENGTH
    with pytest.raises(DeadlineExceeded, match="longer"):
        waiting.result()


def test_the_end_of_text_ends_a_request(
    memory: Memory, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    first = session.bundle.base.tokenizer.eos_token_id
    monkeypatch.setattr("megacontext.engine.sampling.Sampler.__call__", lambda self, logits, recent: first)
    scheduler = small(memory)
    outcome = scheduler.submit(session, "a").result()
    assert (outcome.ended, outcome.text, outcome.tokens) == (Ended.END_OF_TEXT, "", 0)


@pytest.mark.parametrize("kind", [Refocused, TokenDecoded])
@pytest.mark.parametrize("error", [StorageFull("the disk is full"), torch.OutOfMemoryError("no room")])
def test_an_error_in_one_session_ends_its_request_only(
    memory: Memory, opened: Callable[..., Session], kind: type[Event], error: Exception
) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    seen: list[Event] = []

    def fails(event: Event) -> None:
        seen.append(event)
        if isinstance(event, kind) and sum(isinstance(each, kind) for each in seen) == 2:
            raise error

    scheduler, requests = three(memory, opened, fails)
    finish(scheduler)
    assert requests[1].outcome is not None and requests[1].outcome.ended is Ended.FAILED
    with pytest.raises(type(error)):
        requests[1].result()
    assert [requests[0].result().text, requests[2].result().text] == [alone, alone]
    session = requests[1].session
    invariants.check_window(session.window)
    assert scheduler.submit(session, "", max_new_tokens=3, stop_at_eos=False).result().tokens == 3
    scheduler.close_session(session)
    assert is_free(memory, session) and memory.fsck().clean


def test_a_pass_that_one_session_spoils_is_done_again_without_it(
    memory: Memory, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the base for whatever has this session in it; and once for everybody, which halving overcomes."""
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    scheduler, requests = three(memory, opened)
    base, real, spoiled = memory.bundle.base, memory.bundle.base.forward_rows, requests[1].session
    most = [3]

    def forward(embeds: torch.Tensor, positions: torch.Tensor, rows: object, **more: object) -> torch.Tensor:
        if 1 in rows.rows.tolist() and rows.past[rows.rows.tolist().index(1)] > 60:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("no room for this one")
        if len(rows.rows) > most[0]:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("no room for so many")
        return real(embeds, positions, rows, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "forward_rows", forward)
    for _ in range(6):
        scheduler.step()
    most[0] = 1
    finish(scheduler)
    with pytest.raises(torch.OutOfMemoryError, match="this one"):
        requests[1].result()
    assert [requests[0].result().text, requests[2].result().text] == [alone, alone]
    assert scheduler.stats.halved > 0
    invariants.check_window(spoiled.window)


@pytest.mark.parametrize("way", ["session", "scheduler"])
@pytest.mark.parametrize("kind", [Refocused, TokenDecoded])
def test_closing_a_session_in_the_middle_of_a_round(
    memory: Memory, opened: Callable[..., Session], way: str, kind: type[Event]
) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    seen: list[Event] = []

    def closes(event: Event) -> None:
        seen.append(event)
        if isinstance(event, kind) and sum(isinstance(each, kind) for each in seen) == 2:
            scheduler.close_session(requests[1].session) if way == "scheduler" else requests[1].session.close()

    scheduler, requests = three(memory, opened, closes)
    finish(scheduler)
    with pytest.raises(SessionClosed, match="was closed"):
        requests[1].result()
    assert [requests[0].result().text, requests[2].result().text] == [alone, alone]
    assert is_free(memory, requests[1].session)


@pytest.mark.parametrize("kind", [Refocused, TokenDecoded])
def test_an_interrupt_comes_out_and_ends_what_it_hit(memory: Memory, opened: Callable[..., Session], kind: type[Event]) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))

    def interrupts(event: Event) -> None:
        if isinstance(event, kind):
            raise KeyboardInterrupt

    scheduler, requests = three(memory, opened, interrupts)
    with pytest.raises(KeyboardInterrupt):
        finish(scheduler)
    finish(scheduler)
    with pytest.raises(RequestCancelled, match="interrupted"):
        requests[1].result()
    assert [requests[0].result().text, requests[2].result().text] == [alone, alone]


def test_an_interrupted_pass_is_done_again(
    memory: Memory, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    scheduler, requests = three(memory, opened)
    base, real, calls = memory.bundle.base, memory.bundle.base.forward_rows, [0]

    def forward(*given: object, **more: object) -> torch.Tensor:
        calls[0] += 1
        logits = real(*given, **more)  # type: ignore[arg-type]
        if calls[0] % 7 == 0:
            raise KeyboardInterrupt
        return logits

    monkeypatch.setattr(base, "forward_rows", forward)
    interrupts = 0
    while any(request.outcome is None for request in requests):
        try:
            scheduler.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 3
    assert [request.result().text for request in requests] == [alone] * 3


def test_shutting_down(memory: Memory, opened: Callable[..., Session]) -> None:
    scheduler, requests = three(memory, opened)
    scheduler.step()
    scheduler.close()
    assert [request.result().tokens for request in requests] == [20] * 3
    with pytest.raises(SchedulerClosed):
        scheduler.submit(requests[0].session, "a")
    scheduler, requests = three(memory, opened)
    scheduler.step()
    scheduler.close(drain=False)
    for request in requests:
        with pytest.raises(SchedulerClosed):
            request.result()
        assert "".join(request.session.generate("", max_new_tokens=2, stop_at_eos=False))


# -- threads and loops ------------------------------------------------------------------------------


def test_a_thread_of_its_own_serves_threads_that_wait(memory: Memory, opened: Callable[..., Session]) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=20, stop_at_eos=False))
    texts: dict[int, str] = {}
    with small(memory, rows=2) as scheduler:
        requests = [scheduler.submit(opened(), "def f(", max_new_tokens=20, stop_at_eos=False) for _ in range(4)]
        readers = [
            threading.Thread(target=lambda number=number: texts.update({number: "".join(requests[number])}))
            for number in range(4)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        endless = scheduler.submit(opened(), "g", max_new_tokens=100_000, stop_at_eos=False)
        next(iter(endless))
        scheduler.close_session(endless.session)
        with pytest.raises(SessionClosed):
            endless.result(60)
    assert texts == dict.fromkeys(range(4), alone)


@pytest.mark.parametrize("threaded", [True, False])
def test_pieces_come_in_an_event_loop(memory: Memory, opened: Callable[..., Session], threaded: bool) -> None:
    alone = "".join(opened().generate("def f(", max_new_tokens=12, stop_at_eos=False))

    async def collect(request: Request) -> str:
        return "".join([piece async for piece in request])

    async def all_of_them() -> list[str]:
        requests = [scheduler.submit(opened(), "def f(", max_new_tokens=12, stop_at_eos=False) for _ in range(3)]
        return await asyncio.gather(*(collect(request) for request in requests))

    scheduler = small(memory)
    if threaded:
        scheduler.start()
    assert asyncio.run(all_of_them()) == [alone] * 3
    scheduler.close()


def test_without_a_thread_whoever_reads_does_the_rounds(memory: Memory, opened: Callable[..., Session]) -> None:
    _, requests = three(memory, opened)
    assert "".join(requests[2]) == requests[2].result().text
    assert all(request.tokens for request in requests)


# -- LensNet and leaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("key_value", [False, True])
def test_sessions_are_scored_in_one_pass_as_alone(shelf: Callable[[str, bool], Memory], key_value: bool) -> None:
    memory = shelf("llama", key_value)
    sessions = [memory.session(budget=budget, policy="lens") for budget in BUDGETS]
    for number, session in enumerate(sessions):
        session.append(TEXT[number * 100 : number * 150 + 130])
    pairs = [(session.policy, session.view()) for session in sessions]
    assert all(isinstance(policy, Lens) for policy, _ in pairs)
    for (policy, view), together in zip(pairs, score_together(pairs), strict=True):
        assert not isinstance(together, Exception)
        alone = policy.score(view)
        np.testing.assert_allclose(together.entries, alone.entries, atol=1e-5)
    for session in sessions:
        session.close()


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def open_and_close(memory: Memory, count: int) -> tuple[list[int], list[int]]:
    """Handles, and rows that are taken, after every tenth of ``count`` sessions that decode a little and are closed."""
    scheduler, seen, rows = small(memory), [], []
    for number in range(count):
        session = memory.session(budget=192, name=f"leak-{number}")
        scheduler.submit(session, "x", max_new_tokens=1, stop_at_eos=False).result()
        scheduler.close_session(session)
        memory.drop_session(session.branch)
        if number % (count // 10) == count // 10 - 1:
            seen.append(handles())
            rows.append(scheduler.running + scheduler.waiting)
    scheduler.close()
    return seen, rows


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="handles are counted in /proc")
def test_sessions_leave_no_handle_behind(memory: Memory) -> None:
    seen, rows = open_and_close(memory, 50)
    assert len(set(seen[1:])) == 1 and set(rows) == {0}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="handles are counted in /proc")
def test_a_thousand_sessions_leave_handles_and_memory_as_they_were(memory: Memory) -> None:
    open_and_close(memory, 100)
    before = resident()
    seen, _ = open_and_close(memory, 1000)
    assert len(set(seen[1:])) == 1
    assert resident() - before < 16 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_the_bundled_model_says_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m.mc", bundle=load_bundle("bundled"))
    memory.add(Path(asyncio.__file__).parent / "events.py")
    texts = ["async def open_connection(host,", "class Handle:\n    def "]
    alone = []
    for text in texts:
        with memory.session() as session:
            alone.append("".join(session.generate(text, max_new_tokens=18)))
    scheduler = memory.scheduler(rows=4)
    sessions = [memory.session() for _ in texts]
    requests = [scheduler.submit(session, text, max_new_tokens=18) for session, text in zip(sessions, texts, strict=True)]
    finish(scheduler)
    assert [request.result().text for request in requests] == alone
    for session in sessions:
        session.close()
