"""Every error that MegaContext raises on purpose, under one root.

::

    MegaContextError
    ├── InvalidInput (ValueError)        what the caller passed cannot be used; the message says what to do
    │   ├── BudgetError                  the window's budget cannot hold what must be in it
    │   ├── EditError                    an illegal expand or collapse; names the entry
    │   ├── UnknownReference             no such branch, tag, commit, document or node
    │   ├── MergeConflict                documents that both sides changed; names them, and nothing was written
    │   ├── ProtectedTag                 a protected tag stands in the way; names it, and nothing was changed
    │   ├── Erased                       a document that was erased may not come in again
    │   └── ConfigError                  a configuration that contradicts itself
    ├── InvariantError                   an invariant of the design is broken; never healed silently
    │   └── EraseIncomplete              something of what was to be erased is still found; says what and where
    ├── AccessDenied                     the reader was opened with labels that it may not see, and asked for such
    ├── StorageError
    │   ├── MemoryNotFound               no memory at that path
    │   ├── MemoryExists                 there is one already
    │   ├── FormatVersionError           written by a version that this one cannot read
    │   ├── CorruptObject                bytes differ from their checksum; names the object
    │   ├── MissingObject                an object that is referred to is not there
    │   ├── DetailPruned                 raw tokens that were pruned; `restore` brings them back
    │   ├── BranchLocked                 another writer holds the branch
    │   ├── RefConflict                  a branch moved while it was being written
    │   ├── ArchiveError                 an archive that cannot be imported: cut, damaged or made to do harm
    │   └── StorageFull                  the disk refused the write; what was acknowledged is kept
    ├── ModelError
    │   ├── ModelNotFound                neither a folder nor a reachable hub id
    │   ├── ModelMismatch                fingerprints of memory, tokenizer, base or GistNet differ
    │   │   └── LayerBehind              the GistNet's gist layer does not cover the memory; `regist` lays it
    │   ├── CorruptCheckpoint            a checkpoint that cannot be read
    │   └── UnsupportedModel             an architecture that the adapter cannot drive
    ├── IngestError                      a source that cannot be read at all
    ├── ServingError                     a request to a scheduler that did not come to its end
    │   ├── QueueFull                    as many requests wait as may; try again when some are done
    │   ├── SchedulerClosed              the scheduler is shut down
    │   ├── SessionClosed                the session was closed while it was being served
    │   ├── RequestCancelled             somebody asked for that
    │   └── DeadlineExceeded             its time was over
    └── TrainingError
        ├── DatasetError                 an empty split, a corpus without text
        └── DivergedError                the loss is no longer a finite number
"""

from __future__ import annotations


class MegaContextError(Exception):
    """Root of all deliberate errors."""


class InvalidInput(MegaContextError, ValueError):
    """What the caller passed cannot be used; the message says what to do."""


class BudgetError(InvalidInput):
    """The window's budget cannot hold what must be in it."""


class EditError(InvalidInput):
    """An illegal expand or collapse; the message names the entry."""


class UnknownReference(InvalidInput):
    """No such branch, tag, commit, document or node."""


class MergeConflict(InvalidInput):
    """Documents were changed on both sides of a merge, or again since what is to be reverted; nothing was written.

    ``sources`` names them all.
    """

    def __init__(self, message: str, sources: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.sources = sources


class ProtectedTag(InvalidInput):
    """A protected tag stands in the way of what would change or remove what it leads to; nothing was changed.

    ``tags`` names them all.
    """

    def __init__(self, message: str, tags: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tags = tags


class Erased(InvalidInput):
    """A document that was erased from this memory may not come in again, unless that is asked for."""


class ConfigError(InvalidInput):
    """A configuration that contradicts itself."""


class InvariantError(MegaContextError):
    """An invariant of the design is broken; the message names the entry."""


class EraseIncomplete(InvariantError):
    """The scan after an erasure still finds something of what was to be erased; the message says what and where."""


class AccessDenied(MegaContextError):
    """The reader was opened with labels that it may not see, and asked for what carries one."""


class StorageError(MegaContextError):
    """Something is wrong with a memory on disk."""


class MemoryNotFound(StorageError):
    """No memory at that path."""


class MemoryExists(StorageError):
    """A memory is there already."""


class FormatVersionError(StorageError):
    """The memory was written by a version that this one cannot read."""


class CorruptObject(StorageError):
    """Bytes differ from their checksum; the message names the object."""


class MissingObject(StorageError):
    """An object that is referred to is not there."""


class DetailPruned(StorageError):
    """Raw tokens were asked for that are archived; ``megacontext restore`` brings them back."""


class BranchLocked(StorageError):
    """Another writer holds the branch."""


class RefConflict(StorageError):
    """A branch moved while it was being written."""


class ArchiveError(StorageError):
    """An archive that cannot be imported: cut, damaged or made to do harm. Nothing of it was taken."""


class StorageFull(StorageError):
    """The disk refused the write; what was acknowledged before is kept."""


class ModelError(MegaContextError):
    """Something is wrong with a model."""


class ModelNotFound(ModelError):
    """Neither a folder nor a reachable hub id."""


class ModelMismatch(ModelError):
    """Fingerprints of memory, tokenizer, base model or GistNet differ."""


class LayerBehind(ModelMismatch):
    """The GistNet's gist layer is missing or does not cover the memory; ``megacontext regist`` lays it."""


class CorruptCheckpoint(ModelError):
    """A checkpoint that cannot be read."""


class UnsupportedModel(ModelError):
    """An architecture that the adapter cannot drive."""


class IngestError(MegaContextError):
    """A source that cannot be read at all."""


class ServingError(MegaContextError):
    """A request to a scheduler did not come to its end; what it wrote until then is in its session."""


class QueueFull(ServingError):
    """As many requests wait as may; try again when some are done."""


class SchedulerClosed(ServingError):
    """The scheduler is shut down, or shut down before the request was done."""


class SessionClosed(ServingError):
    """The session was closed, before or while a request of it was served."""


class RequestCancelled(ServingError):
    """The request was cancelled or interrupted."""


class DeadlineExceeded(ServingError):
    """The request was not done within the time that it was given."""


class TrainingError(MegaContextError):
    """Training cannot go on."""


class DatasetError(TrainingError):
    """An empty split, or a corpus without text."""


class DivergedError(TrainingError):
    """The loss is no longer a finite number."""
