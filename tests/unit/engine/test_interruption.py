"""Whatever breaks a session off, and wherever, memory and session agree afterwards, and it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from megacontext.core import invariants
from megacontext.engine.events import Event, Refocused, TokenDecoded, WindowRead
from megacontext.engine.kv_cache import WindowCache
from megacontext.engine.memory import Memory
from megacontext.engine.reuse import EXACT, Patched, Reuse
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.session import Session, SessionConfig
from megacontext.errors import InvalidInput

SAMPLED = SamplingConfig(temperature=1.0, seed=3)
# Lines of these are interrupted; what lies below them has tests of its own.
MODULES = (
    "engine/session.py",
    "engine/turn.py",
    "engine/kv_cache.py",
    "engine/reuse.py",
    "engine/assemble.py",
    "models/cache.py",
)


def config(reuse: Reuse = EXACT) -> SessionConfig:
    return SessionConfig(budget=192, recent=32, refocus_every=3, reuse=reuse)


def agree(memory: Memory, session: Session) -> None:
    """The window tiles exactly what is written, and the next logits are those of a fresh cache."""
    session.append_tokens(np.zeros(0, dtype=np.int64))  # takes notice of what an interrupted append had written
    window, snapshot = session.window, session.snapshot
    invariants.check_window(window)
    written = session._writer.blocks * 32 + len(session._writer.open_ids)
    assert window.timeline.tokens == written
    assert snapshot.blocks == window.timeline.blocks
    session.refocus(unlimited=True)
    bundle = memory.bundle
    fresh = WindowCache(bundle.base, bundle.gists, session.strategy).read(session.slots())
    torch.testing.assert_close(session.logits(), fresh, atol=2e-4, rtol=1e-3)


class Interrupt:
    """Raises KeyboardInterrupt before the ``number``-th line that runs in the modules above."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, kind: str, value: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.endswith(MODULES):
            return None
        if kind == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("reuse", [EXACT, Patched(again=2)], ids=lambda reuse: reuse.name)
def test_an_interruption_at_any_line_leaves_a_session_that_goes_on(kv_memory: Memory, quick_disk: None, reuse: Reuse) -> None:
    rng, broken_off = np.random.default_rng(1), 0
    with kv_memory.session(config=config(reuse), policy="random") as session:
        for _ in range(12):
            interrupt = Interrupt(int(rng.integers(1, 1500)))
            before = sys.gettrace()
            sys.settrace(interrupt)
            try:
                list(session.generate("def f", max_new_tokens=6, sampling=SAMPLED, stop_at_eos=False))
            except KeyboardInterrupt:
                broken_off += 1
            finally:
                sys.settrace(before)
                # Raised on the line of a `with` that ends, it keeps Python from leaving torch's no_grad.
                torch.set_grad_enabled(True)
            agree(kv_memory, session)
        assert broken_off >= 6
        tokens = session.window.timeline.tokens
        session.commit()
    snapshot = kv_memory.snapshot(session.branch)
    assert snapshot.blocks * 32 + len(snapshot.open_ids) == tokens


@pytest.mark.parametrize("broken", [0, 1])
def test_no_room_in_the_middle_of_a_pass_leaves_the_session_as_it_was(
    kv_memory: Memory, quick_disk: None, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    layer = kv_memory.bundle.base.model.model.layers[broken]
    with kv_memory.session(config=config(), policy="random") as session, kv_memory.session(budget=192, name="other") as other:
        other.append("x = 1\n")
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(layer, "forward", _out_of_memory)
                with pytest.raises(torch.OutOfMemoryError):
                    list(session.generate("a", max_new_tokens=3, stop_at_eos=False))
            agree(kv_memory, session)
            assert list(session.generate("b", max_new_tokens=4, stop_at_eos=False)) is not None
        assert torch.isfinite(other.logits()).all()


def _out_of_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_a_generator_that_is_closed_keeps_what_it_decoded(kv_memory: Memory, quick_disk: None) -> None:
    with kv_memory.session(config=config(), policy="random", name="left") as session:
        pieces = session.generate("def f", max_new_tokens=30, sampling=SAMPLED, stop_at_eos=False)
        given = [next(pieces) for _ in range(3)]
        pieces.close()
        agree(kv_memory, session)
        tokens = session.window.timeline.tokens
        assert given
    snapshot = kv_memory.snapshot("sessions/left")
    assert snapshot.blocks * 32 + len(snapshot.open_ids) == tokens


@pytest.mark.parametrize("kind", [Refocused, TokenDecoded, WindowRead])
def test_a_listener_that_raises_or_closes_the_session_leaves_the_branch_whole(
    kv_memory: Memory, quick_disk: None, kind: type[Event]
) -> None:
    def listener(event: Event) -> None:
        if armed and isinstance(event, kind):
            raise RuntimeError("enough")

    armed: list[bool] = []
    with kv_memory.session(config=config(), policy="random", name="told", listener=listener) as session:
        list(session.generate("def f", max_new_tokens=4, stop_at_eos=False))
        armed.append(True)
        with pytest.raises(RuntimeError, match="enough"):
            list(session.generate("g", max_new_tokens=8, stop_at_eos=False))
        armed.clear()
        agree(kv_memory, session)


def test_closing_in_the_middle_of_a_refocus_is_a_clear_error_and_loses_nothing(kv_memory: Memory, quick_disk: None) -> None:
    class Closing:
        name = "closing"

        def score(self, view: Any) -> Any:
            session.close()
            return kept.score(view)

    session = kv_memory.session(config=config(), policy="random", name="closed")
    kept = session.policy
    session.append("def f(")
    tokens = session.window.timeline.tokens
    session.refocus(policy=Closing())
    session.close()  # twice is once
    for call in (session.refocus, session.logits, lambda: session.append("x")):
        with pytest.raises(InvalidInput, match="closed"):
            call()
    with kv_memory.session(config=config(), name="closed") as again:
        assert again.window.timeline.tokens == tokens


def test_reads_are_told_with_what_was_dirty_and_what_was_kept(kv_memory: Memory, quick_disk: None) -> None:
    reads: list[WindowRead] = []

    def listener(event: Event) -> None:
        if isinstance(event, WindowRead):
            reads.append(event)

    with kv_memory.session(config=config(Patched()), policy="random", listener=listener) as session:
        list(session.generate("def f", max_new_tokens=12, sampling=SAMPLED, stop_at_eos=False))
        stats = session.cache_stats
    first, *later = reads
    assert first.reused == 0 and first.forwarded > 32 and stats.prefills == 1
    assert later and all(read.reuse == "patched-0" and read.unsupported is None for read in later)
    assert all(read.forwarded % 32 == 1 and 0 <= read.first < read.slots for read in later)
    assert sum(read.forwarded for read in reads) <= stats.forwarded
