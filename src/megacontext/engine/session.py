"""A session: one conversation over a branch of a memory, with a window of fixed budget.

It writes to a branch of its own, forked from the one it reads, so that any number of sessions share a
memory without contention. What is prompted and decoded is appended to one growing document there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from megacontext.engine.assemble import IntArray, Slots, slots_of
from megacontext.engine.bundle import Bundle
from megacontext.engine.conversation import append_tokens
from megacontext.engine.events import Listener, MadeRoom, Refocused, TokenDecoded, nobody
from megacontext.engine.explain import EntryExplanation, explain_entries
from megacontext.engine.focus import FOCUS_DEFAULTS, Refocus, refocus
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.kept import kept_tokens
from megacontext.engine.kv_cache import CacheStats, Pass, WindowCache
from megacontext.engine.policies import FocusPolicy, FocusView, Search, no_search
from megacontext.engine.reader import real_tokens
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.turn import Turn
from megacontext.errors import BudgetError, ConfigError
from megacontext.models.kv_memory import StoredMemory
from megacontext.models.positions import PositionStrategy, window_ranks
from megacontext.storage import BranchWriter, Snapshot

QUERY_TOKENS = 128
# Tokens that an explanation names of each gist.
KEPT = 8


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """``budget`` W_max and ``recent`` (raw tail) in tokens; ``refocus_every`` decoded tokens."""

    budget: int = 1024
    recent: int = 128
    refocus_every: int = 16
    allocator: AllocatorConfig = FOCUS_DEFAULTS

    def __post_init__(self) -> None:
        if self.refocus_every < 1:
            raise ConfigError(f"refocus_every must be at least 1, not {self.refocus_every}")
        if self.recent + self.allocator.reserve >= self.budget:
            raise BudgetError(
                f"a budget of {self.budget} is too small for a raw tail of {self.recent} tokens and the "
                f"{self.allocator.reserve} that are decoded next: raise the budget or lower recent"
            )


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
        search: Search | None = None,
        listener: Listener = nobody,
    ) -> None:
        if config.budget > bundle.base.context_length:
            raise BudgetError(
                f"a budget of {config.budget} does not fit the base model, which was made for "
                f"{bundle.base.context_length} positions: lower the budget"
            )
        self.config, self.policy, self.bundle = config, policy, bundle
        self._writer, self._listener, self._search = writer, listener, search or no_search
        self._builder = GistBuilder(bundle.base, bundle.gists) if bundle.gists is not None else None
        self._cache = WindowCache(bundle.base, bundle.gists, strategy or window_ranks(bundle.gists))
        writer.begin_document(source=source, media_type="text/x-megacontext-session", open=True)
        self._snapshot: Snapshot = writer.snapshot()
        self._open: IntArray = writer.open_ids.astype(np.int64)
        vectors = bundle.gists.vectors if bundle.gists is not None else 1
        self.window = WorkingContext.coarsest(self._snapshot.timeline(), config.budget, config.recent, vectors)
        self._history = EditHistory()
        self._slots: Slots | None = None
        self._since_refocus = 0
        self.last_refocus: Refocus | None = None

    # -- reading --------------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        """The branch that this session writes."""
        return self._writer.branch

    @property
    def cache_stats(self) -> CacheStats:
        """How much the key/value cache spared so far."""
        return self._cache.stats

    @property
    def snapshot(self) -> Snapshot:
        """The memory as this session sees it, up to its last complete block."""
        return self._snapshot

    def strip(self, width: int = 80) -> str:
        """The working context as a level-of-detail strip for terminals."""
        return strip(self.window, width)

    def explain(self) -> list[EntryExplanation]:
        """Every entry of the window: span, source, score, why, and what its gist keeps where that can be told."""
        columns = (self.window.lod.tolist(), self.window.index.tolist())
        nodes = [(lod, index) for lod, index in zip(*columns, strict=True) if lod]
        kept = kept_tokens(self._snapshot, self.bundle, nodes, self._word, KEPT)
        return explain_entries(self.window, self._snapshot, self.last_refocus, dict(zip(nodes, kept, strict=True)))

    def logits(self) -> torch.Tensor:
        """Logits float32 [V] of the token that comes next, given the window."""
        return self.run(self.next_input())

    @property
    def due_refocus(self) -> bool:
        """Whether as many tokens were decoded since the last refocus as the configuration says."""
        return self._since_refocus >= self.config.refocus_every

    def query(self) -> IntArray:
        """The newest real tokens, int64 [≤ 128], oldest first."""
        near = real_tokens(self._snapshot, self._snapshot.timeline().newest(QUERY_TOKENS // BLOCK + 1))
        return np.concatenate([near, self._open])[-QUERY_TOKENS:]

    def view(self) -> FocusView:
        """All that a policy may look at now."""
        documents = len(self._snapshot.documents)
        return FocusView(
            window=self.window,
            reader=self._snapshot,
            query=self.query(),
            document=documents - 1,
            step=self._history.step,
            search=self._search,
        )

    # -- writing --------------------------------------------------------------------------------

    def append(self, text: str) -> int:
        """Add ``text`` to the conversation; returns how many tokens that were."""
        ids = np.asarray(self.bundle.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
        self.append_tokens(ids)
        return len(ids)

    def append_tokens(self, ids: IntArray) -> None:
        """Add token ids int64 [k] to the conversation; the window follows within its budget."""
        if not len(ids):
            return
        whole = append_tokens(self._writer, self._builder, ids.astype(np.uint32), self._snapshot.timeline())
        self._open = self._writer.open_ids.astype(np.int64)
        if whole:
            self._writer.sync()
            self._snapshot = self._writer.snapshot()
        timeline = self.window.timeline.extend(self._snapshot.blocks, len(self._open))
        self.window, edits = advance_within_budget(self.window, timeline)
        if self._slots is not None and not edits:
            place = timeline.tokens - len(ids)
            self._slots = self._slots.then(ids, place, len(self.window))
        else:
            self._slots = None
        if edits:
            self._listener(MadeRoom(edits=edits))

    def refocus(self, *, unlimited: bool = False, policy: FocusPolicy | None = None) -> Refocus:
        """Let the policy (None: the session's own) look at the window and the allocator edit it."""
        result = refocus(self.view(), policy or self.policy, self.config.allocator, self._history, unlimited=unlimited)
        if result.plan.edits:
            self._slots = None
        self.window, self._history, self.last_refocus = result.after, result.history, result
        self._since_refocus = 0
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
        return self._cache.plan(self._materialise())

    def run(self, step: Pass) -> torch.Tensor:
        """Logits float32 [V] of what follows ``step``, the last ``next_input``, computed alone and settled."""
        return self._cache.run(step)

    def settle(self, step: Pass) -> None:
        """Note that somebody else forwarded ``step``, the last ``next_input``, and extended its cache."""
        self._cache.settle(step)

    def memory(self, step: Pass) -> StoredMemory | None:
        """What lookup heads read beside the slots of ``step``; None where gists are slots like tokens, or there are none."""
        return self._cache.memory(step)

    def accept(self, token: int) -> None:
        """Append a decoded token."""
        self.append_tokens(np.array([token], dtype=np.int64))
        self._since_refocus += 1
        self._listener(TokenDecoded(token=token, tokens=self.window.timeline.tokens, cost=self.window.cost))

    def sync(self) -> None:
        """Acknowledge what was written: it survives a crash."""
        self._writer.sync()

    def commit(self, message: str = "session", *, author: str = "") -> str:
        """Settle what was written so far in a commit of the session's branch; returns its name."""
        return self._writer.commit(message=message, author=author)

    def close(self) -> None:
        """Acknowledge what was written and let the branch go."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- parts ----------------------------------------------------------------------------------

    def _materialise(self) -> Slots:
        if self._slots is None:
            self._slots = slots_of(self.window, self._snapshot, self._open, gists=self._builder is not None)
        return self._slots

    def _word(self, ids: list[int]) -> str:
        text: str = self.bundle.tokenizer.decode(ids, skip_special_tokens=False)
        return text
