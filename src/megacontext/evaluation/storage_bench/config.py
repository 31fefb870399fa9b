"""What ``bench storage`` measures, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields

from megacontext.errors import ConfigError

SCATTERED, CONTIGUOUS = 256, 8192
"""Rows that one scattered and one contiguous read ask for."""


@dataclass(frozen=True, kw_only=True)
class StorageBenchConfig:
    """The memory and the repeats. ``blocks`` of 32 tokens in documents of ``document_blocks``, each with ``vectors`` gists of
    ``width``; written in batches of ``batch_blocks``, committed (and the plain file synced) every ``commit_blocks``.

    ``appends``, ``reads``, ``cold_reads``, ``opens`` and ``branches``: how often each is timed.
    """

    blocks: int = 1_000_000
    width: int = 384
    vectors: int = 1
    document_blocks: int = 100
    batch_blocks: int = 4096
    commit_blocks: int = 65_536
    appends: int = 400
    reads: int = 400
    cold_reads: int = 20
    opens: int = 60
    branches: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = min(getattr(self, field.name) for field in fields(self) if field.name != "seed")
        if smallest < 1:
            raise ConfigError("sizes and repeats are at least 1")
        if self.blocks < CONTIGUOUS:
            raise ConfigError(f"a contiguous read takes {CONTIGUOUS} blocks: the memory needs at least as many")
        if self.document_blocks * 10 > self.blocks:
            raise ConfigError("documents are at most a tenth of the memory, so that some can change and others not")
