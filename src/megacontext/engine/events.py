"""What happened, as typed values. Progress bars, telemetry and playback are listeners, never lines in the logic.

A listener is any function of one event. It is called in the thread that does the work, in order; what it raises
ends that work as if it had been interrupted there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from megacontext.core import Edit
    from megacontext.engine.focus import Refocus
    from megacontext.engine.status import LayerStatus


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that is told to listeners."""


Listener = Callable[[Event], None]


def nobody(event: Event) -> None:
    """The listener that ignores everything."""


def each_of(*listeners: Listener) -> Listener:
    """One listener that tells all of these, in this order."""

    def listener(event: Event) -> None:
        for each in listeners:
            each(event)

    return listener


@dataclass(frozen=True, kw_only=True)
class IngestStarted(Event):
    """`sources` were found, with `size` bytes to read as far as that is known before reading."""

    sources: int
    size: int


@dataclass(frozen=True, kw_only=True)
class DocumentStarted(Event):
    """A document of `chars` characters begins; `resumed` blocks of it were there already."""

    uri: str
    version: int
    chars: int
    resumed: int


@dataclass(frozen=True, kw_only=True)
class BlocksIngested(Event):
    """`blocks` more blocks with `tokens` real tokens of a document are written, up to character `chars_done`."""

    uri: str
    blocks: int
    tokens: int
    chars_done: int
    chars: int


@dataclass(frozen=True, kw_only=True)
class DocumentFinished(Event):
    """A document is complete: `blocks` and `tokens` in all, what was resumed included; `size` of its text in bytes."""

    uri: str
    version: int
    blocks: int
    tokens: int
    size: int


@dataclass(frozen=True, kw_only=True)
class DocumentUnchanged(Event):
    """This version of the document is in the branch already."""

    uri: str
    size: int


@dataclass(frozen=True, kw_only=True)
class DocumentSkipped(Event):
    """A source is left out."""

    uri: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Committed(Event):
    """The branch is at `commit` now, with `blocks` blocks; everything told before is settled."""

    commit: str
    blocks: int


@dataclass(frozen=True, kw_only=True)
class RegistStarted(Event):
    """A gist layer that covers `covered` blocks is to cover all `blocks` of a branch."""

    fingerprint: str
    covered: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class BlocksRegisted(Event):
    """The gists of `blocks` more blocks are made: `covered` of `total`."""

    blocks: int
    covered: int
    total: int


@dataclass(frozen=True, kw_only=True)
class ConvertStarted(Event):
    """A branch is converted: `documents`, all versions of them that are due, with `chars` characters as far as it is known."""

    branch: str
    documents: int
    chars: int


@dataclass(frozen=True, kw_only=True)
class LayersLeftBehind(Event):
    """The branch is written with one GistNet, and these layers of others do not grow along: `megacontext regist`, with their
    models, brings them up to date."""

    layers: tuple[LayerStatus, ...]


@dataclass(frozen=True, kw_only=True)
class TokenDecoded(Event):
    """A token was decoded and appended; `tokens` is the timeline's length, `cost` the window's, after it."""

    token: int
    tokens: int
    cost: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TokensAppended(Event):
    """`ids` int64 [k] of a prompt or of decoding were appended; `tokens` is the timeline's length after them."""

    ids: NDArray[np.int64]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class MadeRoom(Event):
    """The window had to make room for appended tokens: `edits`, in the order in which they were applied."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True, kw_only=True)
class Refocused(Event):
    """The window was refocused for the `step`-th time; `result` is an `engine.focus.Refocus`."""

    step: int
    result: Refocus


@dataclass(frozen=True, kw_only=True)
class WindowRead(Event):
    """More than one slot went through the base: after a prompt, or a refocus that edited the window.

    Of ``slots`` in the window, everything from the ``first`` on was dirty; ``forwarded`` were computed (the token decoded last
    is one of them) and ``reused`` kept, by the option named ``reuse``. ``unsupported``: why the option that was asked for
    cannot be had with this base. ``seconds`` of the pass; 0 where somebody else made it.
    """

    slots: int
    first: int
    forwarded: int
    reused: int
    seconds: float
    reuse: str
    unsupported: str | None = None
