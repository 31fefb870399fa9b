"""Where a memory lives: an append-only Merkle tree of tokens on disk, with gist layers over it.

`Repository` is the way in; `BranchWriter` writes, `Snapshot` reads, `LayerWriter` re-gists.
"""

from megacontext.storage.commit import Commit
from megacontext.storage.compare import Change
from megacontext.storage.documents import DocumentRecord, Documents
from megacontext.storage.fsck import Report
from megacontext.storage.gists import Layer, LayerSpec, NewGists
from megacontext.storage.info import MemoryInfo
from megacontext.storage.layers import LayerWriter
from megacontext.storage.objects import LocalObjectStore, ObjectReader, ObjectStore
from megacontext.storage.patches import Patches
from megacontext.storage.repository import Repository
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.transaction import Transaction
from megacontext.storage.walk import Finding
from megacontext.storage.writer import BranchWriter, Resumed

__all__ = [
    "BranchWriter",
    "Change",
    "Commit",
    "DocumentRecord",
    "Documents",
    "Finding",
    "Layer",
    "LayerSpec",
    "LayerWriter",
    "LocalObjectStore",
    "MemoryInfo",
    "NewGists",
    "ObjectReader",
    "ObjectStore",
    "Patches",
    "Report",
    "Repository",
    "Resumed",
    "Snapshot",
    "Transaction",
]
