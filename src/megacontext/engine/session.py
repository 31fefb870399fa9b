"""A session: one conversation over a branch of a memory, with a window of fixed budget.

It writes to a branch of its own, forked from the one it reads, so that any number of sessions share a
memory without contention. What is prompted and decoded is appended to one growing document there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import numpy as np
import torch

from megacontext.core import (
    BLOCK,
    AllocatorConfig,
    EditHistory,
    WorkingContext,
    advance_within_budget,
    strip,
)
from megacontext.engine.assemble import IntArray, Slots, slots_after, slots_of
from megacontext.engine.bundle import Bundle
from megacontext.engine.conversation import append_tokens
from megacontext.engine.events import (
    Listener,
    MadeRoom,
    Refocused,
    TokenDecoded,
    TokensAppended,
    WindowRead,
    nobody,
)
from megacontext.engine.explain import EntryExplanation, explain_entries
from megacontext.engine.focus import FOCUS_DEFAULTS, Refocus, refocus
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.kept import kept_tokens
from megacontext.engine.kv_cache import CacheStats, MakeCache, Pass, WindowCache
from megacontext.engine.policies import FocusPolicy, FocusView, Searching, no_searches
from megacontext.engine.reader import real_tokens
from megacontext.engine.reuse import REUSE, Reuse
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.turn import Turn
from megacontext.errors import BudgetError, ConfigError, InvalidInput
from megacontext.models.kv_memory import StoredMemory
from megacontext.models.positions import PositionStrategy, window_ranks
from megacontext.storage import BranchWriter, Snapshot

QUERY_TOKENS = 128
# Tokens that an explanation names of each gist.
KEPT = 8


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """``budget`` W_max and ``recent`` (raw tail) in tokens; ``refocus_every`` decoded tokens; ``reuse``: what of the key/value
    cache is kept when decoding refocuses (a turn begins with an exact one)."""

    budget: int = 1024
    recent: int = 128
    refocus_every: int = 16
    allocator: AllocatorConfig = FOCUS_DEFAULTS
    reuse: Reuse = REUSE

    def __post_init__(self) -> None:
        if self.refocus_every < 1:
            raise ConfigError(f"refocus_every must be at least 1, not {self.refocus_every}")
        if self.recent + self.allocator.reserve >= self.budget:
            raise BudgetError(
                f"a budget of {self.budget} is too small for a raw tail of {self.recent} tokens and the "
                f"{self.allocator.reserve} that are decoded next: raise the budget or lower recent"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Now:
    """All that a session knows at one moment. Replaced as a whole, so that an interruption leaves what was or what is.

    ``open_ids`` int64 [k]: the unfinished block; ``assembled``: the last window whose slots were made, and those; ``anew``: the
    next pass reads what a fresh cache would.
    """

    snapshot: Snapshot
    open_ids: IntArray
    window: WorkingContext
    history: EditHistory = field(default_factory=EditHistory)
    since_refocus: int = 0
    last_refocus: Refocus | None = None
    assembled: tuple[WorkingContext, Slots] | None = None
    anew: bool = False


class Session:
    """Made by ``Memory.session``; use as a context manager."""

    def __init__(
        self,
        writer: BranchWriter,
        bundle: Bundle,
        policy: FocusPolicy,
        config: SessionConfig,
        *,
        source: str,
        strategy: PositionStrategy | None = None,
        searching: Searching | None = None,
        listener: Listener = nobody,
    ) -> None:
        if config.budget > bundle.base.context_length:
            raise BudgetError(
                f"a budget of {config.budget} does not fit the base model, which was made for "
                f"{bundle.base.context_length} positions: lower the budget"
            )
        self.config, self.policy, self.bundle = config, policy, bundle
        self._writer, self._listener, self._searching = writer, listener, searching or no_searches
        self._builder = GistBuilder(bundle.base, bundle.gists) if bundle.gists is not None else None
        self.strategy: PositionStrategy = strategy or window_ranks(bundle.gists)
        self._cache = WindowCache(bundle.base, bundle.gists, self.strategy, reuse=config.reuse)
        self.closed = False
        writer.begin_document(source=source, media_type="text/x-megacontext-session", open=True)
        snapshot, vectors = writer.snapshot(), bundle.gists.vectors if bundle.gists is not None else 1
        window = WorkingContext.coarsest(snapshot.timeline(), config.budget, config.recent, vectors)
        self._now = _Now(snapshot=snapshot, open_ids=writer.open_ids.astype(np.int64), window=window)

    # -- reading --------------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        """The branch that this session writes."""
        return self._writer.branch

    @property
    def window(self) -> WorkingContext:
        """What the base reads now."""
        return self._now.window

    @property
    def last_refocus(self) -> Refocus | None:
        """What the last refocus saw, decided and left."""
        return self._now.last_refocus

    @property
    def cache_stats(self) -> CacheStats:
        """How much the key/value cache spared so far."""
        return self._cache.stats

    @property
    def snapshot(self) -> Snapshot:
        """The memory as this session sees it, up to its last complete block."""
        return self._now.snapshot

    def strip(self, width: int = 80) -> str:
        """The working context as a level-of-detail strip for terminals."""
        return strip(self.window, width)

    def explain(self) -> list[EntryExplanation]:
        """Every entry of the window: span, source, score, why, and what its gist keeps where that can be told."""
        columns = (self.window.lod.tolist(), self.window.index.tolist())
        nodes = [(lod, index) for lod, index in zip(*columns, strict=True) if lod]
        kept = kept_tokens(self.snapshot, self.bundle, nodes, self._word, KEPT)
        return explain_entries(self.window, self.snapshot, self.last_refocus, dict(zip(nodes, kept, strict=True)))

    def logits(self) -> torch.Tensor:
        """Logits float32 [V] of the token that comes next, given the window."""
        return self.run(self.next_input())

    @property
    def due_refocus(self) -> bool:
        """Whether as many tokens were decoded since the last refocus as the configuration says."""
        return self._now.since_refocus >= self.config.refocus_every

    def slots(self) -> Slots:
        """The window as the base reads it. Only entries that are new since the last time are gathered."""
        now = self._now
        if now.assembled is not None and now.assembled[0] is now.window:
            return now.assembled[1]
        gists = self._builder is not None
        if now.assembled is None or not len(now.assembled[0]):
            slots = slots_of(now.window, now.snapshot, now.open_ids, gists=gists)
        else:
            slots = slots_after(*now.assembled, now.window, now.snapshot, now.open_ids, gists=gists)
        self._now = replace(now, assembled=(now.window, slots))
        return slots

    def query(self) -> IntArray:
        """The newest real tokens, int64 [≤ 128], oldest first."""
        now = self._now
        near = real_tokens(now.snapshot, now.window.timeline.newest(QUERY_TOKENS // BLOCK + 1))
        return np.concatenate([near, now.open_ids])[-QUERY_TOKENS:]

    def view(self) -> FocusView:
        """All that a policy may look at now."""
        documents = len(self.snapshot.documents)
        return FocusView(
            window=self.window,
            reader=self.snapshot,
            query=self.query(),
            document=documents - 1,
            step=self._now.history.step,
            searches=self._searching(self.snapshot),
        )

    # -- writing --------------------------------------------------------------------------------

    def append(self, text: str) -> int:
        """Add ``text`` to the conversation; returns how many tokens that were."""
        encoded = self.bundle.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        self.append_tokens(ids)
        return len(ids)

    def append_tokens(self, ids: IntArray) -> None:
        """Add token ids int64 [k] to the conversation; the window follows within its budget."""
        self._follow()
        if not len(ids):
            return
        append_tokens(self._writer, self._builder, ids.astype(np.uint32), self.snapshot.timeline())
        self._follow()

    def refocus(self, *, unlimited: bool = False, policy: FocusPolicy | None = None) -> Refocus:
        """Let the policy (None: the session's own) look at the window and the allocator edit it.

        ``unlimited`` lifts the limit on edits, and has the next pass read exactly what a fresh cache would.
        """
        self._follow()
        now = self._now
        result = refocus(self.view(), policy or self.policy, self.config.allocator, now.history, unlimited=unlimited)
        self._now = replace(
            now,
            window=result.after,
            history=result.history,
            last_refocus=result,
            since_refocus=0,
            anew=now.anew or unlimited,
        )
        self._listener(Refocused(step=result.history.step, result=result))
        return result

    def begin_turn(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 64,
        sampling: SamplingConfig | None = None,
        stop_at_eos: bool = True,
    ) -> Turn:
        """Append ``prompt`` and refocus without a limit on edits; the turn that decodes the answer.

        ConfigError where there is nothing to continue.
        """
        self.append(prompt)
        self.refocus(unlimited=True)
        if self.window.timeline.tokens == 0:
            raise ConfigError("there is nothing to continue: give a prompt or add documents first")
        return Turn(self, max_new_tokens, sampling or SamplingConfig(), stop_at_eos=stop_at_eos)

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 64,
        sampling: SamplingConfig | None = None,
        stop_at_eos: bool = True,
    ) -> Iterator[str]:
        """Append ``prompt``, then decode up to ``max_new_tokens``, yielding text as it becomes certain.

        Stops at the end-of-text token unless told not to. What is decoded is part of the memory's branch like the prompt.
        """
        turn = self.begin_turn(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop_at_eos=stop_at_eos)
        while not turn.finished:
            if turn.due_refocus:
                self.refocus()
            if piece := turn.accept(turn.choose(self.logits())):
                yield piece
        if rest := turn.end():
            yield rest

    def next_input(self) -> Pass:
        """What has to go through the base before the next token can be predicted; computes nothing."""
        self._follow()
        return self._cache.plan(self.slots(), exact=self._now.anew)

    def run(self, step: Pass) -> torch.Tensor:
        """Logits float32 [V] of what follows ``step``, the last ``next_input``, computed alone and settled."""
        started = time.perf_counter()
        logits = self._cache.run(step)
        self._read(step, time.perf_counter() - started)
        return logits

    def settle(self, step: Pass) -> None:
        """Note that somebody else forwarded ``step``, the last ``next_input``, and extended its cache."""
        self._cache.settle(step)
        self._read(step, 0.0)

    def house(self, make: MakeCache | None) -> None:
        """Forget keys and values; from now on empty caches come from ``make`` (None: the base's own)."""
        self._cache.house(make)

    def memory(self, step: Pass) -> StoredMemory | None:
        """What lookup heads read beside the slots of ``step``; None where gists are slots like tokens, or there are none."""
        return self._cache.memory(step)

    def accept(self, token: int) -> None:
        """Append a decoded token."""
        self.append_tokens(np.array([token], dtype=np.int64))
        self._now = replace(self._now, since_refocus=self._now.since_refocus + 1)
        self._listener(TokenDecoded(token=token, tokens=self.window.timeline.tokens, cost=self.window.cost))

    def sync(self) -> None:
        """Acknowledge what was written: it survives a crash."""
        self._writer.sync()

    def commit(self, message: str = "session", *, author: str = "") -> str:
        """Settle what was written so far in a commit of the session's branch; returns its name."""
        return self._writer.commit(message=message, author=author)

    def close(self) -> None:
        """Acknowledge what was written and let the branch go. Once is enough; what is asked afterwards is an InvalidInput."""
        if not self.closed:
            self.closed = True
            self._cache.house(None)
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- parts ----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Bring the window up to what is written: an append that was interrupted half-way is made up for here."""
        if self.closed:
            raise InvalidInput(f"the session on {self.branch} is closed: open another one with Memory.session")
        now, writer = self._now, self._writer
        before = now.window.timeline
        if writer.blocks == before.blocks and len(writer.open_ids) == before.open_tokens:
            return
        open_ids = writer.open_ids.astype(np.int64)
        snapshot = now.snapshot
        if writer.blocks != before.blocks:
            writer.sync()
            snapshot = writer.snapshot()
        timeline = before.extend(snapshot.blocks, len(open_ids))
        window, edits = advance_within_budget(now.window, timeline)
        whole = snapshot.tokens_at(np.arange(before.blocks, snapshot.blocks)).ravel().astype(np.int64)
        new = np.concatenate([whole, open_ids])[before.open_tokens :]
        assembled = None
        if now.assembled is not None and now.assembled[0] is now.window and not edits:
            assembled = (window, now.assembled[1].grown(new, now.window))
        self._now = replace(now, snapshot=snapshot, open_ids=open_ids, window=window, assembled=assembled or now.assembled)
        self._listener(TokensAppended(ids=new, tokens=timeline.tokens))
        if edits:
            self._listener(MadeRoom(edits=edits))

    def _read(self, step: Pass, seconds: float) -> None:
        if self._now.anew:
            self._now = replace(self._now, anew=False)
        if len(step) > 1:
            cache = self._cache
            self._listener(
                WindowRead(
                    slots=len(step.slots),
                    first=step.first,
                    forwarded=len(step),
                    reused=step.kept,
                    seconds=seconds,
                    reuse=cache.reuse.name,
                    unsupported=cache.unsupported,
                )
            )

    def _word(self, ids: list[int]) -> str:
        text: str = self.bundle.tokenizer.decode(ids, skip_special_tokens=False)
        return text
