"""Several GistNets over one memory: laying a layer of gists over tokens that are there, and dropping one.

Tokens are never touched. What a run has committed stays when it is interrupted or killed, and the next one goes on behind
it; the layer is bit for bit the one of a memory that was written with that GistNet from the start.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from megacontext.engine.archived import out_of_reach, refuse
from megacontext.engine.events import BlocksRegisted, Committed, Listener, RegistStarted, nobody
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.status import LayerStatus, layers_of
from megacontext.errors import ConfigError, LayerBehind, ModelMismatch, UnknownReference
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import LayerWriter, Repository, Snapshot

# Digits of a fingerprint that name a layer where they are unique.
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class RegistConfig:
    """`piece_blocks` are encoded together; a commit is made after `commit_blocks` of them or `commit_seconds`, whichever comes
    first: that much work a crash can lose."""

    piece_blocks: int = 1024
    commit_blocks: int = 4096
    commit_seconds: float = 20.0

    def __post_init__(self) -> None:
        if min(self.piece_blocks, self.commit_blocks) < 1 or self.commit_seconds <= 0:
            raise ConfigError("piece_blocks, commit_blocks and commit_seconds must be positive")


@dataclass(frozen=True, kw_only=True)
class RegistReceipt:
    """The layer `fingerprint` of `branch` covers all its `blocks` now, `made` of them since this run began; the tokens of
    `archived` of these are pruned and were read in their archive."""

    fingerprint: str
    branch: str
    commit: str
    blocks: int
    made: int
    archived: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def regist(
    repository: Repository,
    base: BaseLM,
    encoder: GistEncoder,
    *,
    branch: str | None = None,
    model: str = "",
    author: str = "",
    config: RegistConfig | None = None,
    listener: Listener = nobody,
) -> RegistReceipt:
    """Lays the encoder's gists over all that a branch (default: the current one) holds, or brings them up to date.

    `model` is what the log calls the GistNet. Holds the branch: raises BranchLocked while somebody else writes it. What is
    pruned is read in its archive and stays pruned; raises DetailPruned, which names the documents, where one is not at hand.
    """
    started = time.perf_counter()
    builder = GistBuilder(base, encoder)
    with repository.add_layer(builder.spec, branch) as writer:
        archived = _archived(repository, writer)
        run = _Run(writer, config or RegistConfig(), f"{builder.spec.fingerprint[:12]} of {model}".removesuffix(" of "), author)
        listener(RegistStarted(fingerprint=builder.spec.fingerprint, covered=writer.blocks, blocks=writer.tokens.blocks))
        first = writer.blocks
        commit = run(builder, listener)
        return RegistReceipt(
            fingerprint=builder.spec.fingerprint,
            branch=writer.branch,
            commit=commit,
            blocks=writer.blocks,
            made=writer.blocks - first,
            archived=archived,
            seconds=time.perf_counter() - started,
        )


def _archived(repository: Repository, writer: LayerWriter) -> int:
    """How many blocks have to be read in an archive. Raises DetailPruned where one is not at hand."""
    need = [(max(start, writer.blocks), stop) for start, stop in writer.pruned() if stop > writer.blocks]
    if need:
        # Dead documents are among them: a layer has a gist of every block.
        records = [replace(record, original="") for record in writer.tokens.documents if record.blocks]
        refuse(out_of_reach(repository, writer.tokens.commit_name, records), "a layer of gists")
    return sum(stop - start for start, stop in need)


class _Run:
    """One run into an open writer."""

    def __init__(self, writer: LayerWriter, config: RegistConfig, name: str, author: str) -> None:
        self._writer, self._config, self._name, self._author = writer, config, name, author
        self._settled, self._moment = writer.blocks, time.monotonic()

    def __call__(self, builder: GistBuilder, listener: Listener) -> str:
        writer, tokens = self._writer, self._writer.tokens
        if writer.died:
            writer.patch(builder.remake(writer.stored(), tokens.timeline(), writer.died))
        stored = writer.stored() if writer.blocks else None
        try:
            for blocks, gists in builder.rebuild(tokens, stored, piece=self._config.piece_blocks):
                writer.append(blocks, gists)
                listener(BlocksRegisted(blocks=blocks, covered=writer.blocks, total=tokens.blocks))
                if self._due():
                    listener(Committed(commit=self._commit(), blocks=writer.blocks))
        except KeyboardInterrupt:
            self._commit()
            raise
        return self._commit()

    def _due(self) -> bool:
        new, config = self._writer.blocks - self._settled, self._config
        return new >= config.commit_blocks or time.monotonic() - self._moment >= config.commit_seconds

    def _commit(self) -> str:
        covered, total = self._writer.blocks, self._writer.tokens.blocks
        part = "" if covered == total else f", {covered:,} of {total:,} blocks so far"
        commit = self._writer.commit(f"Regist with {self._name}{part}", self._author)
        self._settled, self._moment = covered, time.monotonic()
        return commit


def remove_layer(repository: Repository, fingerprint: str, *, branch: str | None = None, author: str = "") -> tuple[str, str]:
    """Drops a gist layer, named by the first digits of its fingerprint, in a new commit; older commits keep it.

    Returns the whole fingerprint and the commit. Raises UnknownReference where no layer, or more than one, is called that.
    """
    known = repository.snapshot(branch).layers
    found = [name for name in known if name.startswith(fingerprint) and len(fingerprint) >= min(_DIGITS, len(name))]
    if len(found) != 1:
        there = ", ".join(sorted(known)) or "none"
        what = f"several layers begin with {fingerprint}; give more digits" if found else f"no gist layer {fingerprint!r}"
        raise UnknownReference(f"{what}; there are: {there}")
    return found[0], repository.drop_layer(found[0], branch, message=f"Drop the gists of {found[0][:12]}", author=author)


def check_layer(snapshot: Snapshot, encoder: GistEncoder | None, model: str, branch: str | None = None) -> None:
    """LayerBehind unless the encoder's layer is that of all that the snapshot (of `branch`; None: the current one) sees;
    ModelMismatch where there is no encoder, but gists."""
    layers = {layer.fingerprint: layer for layer in layers_of(snapshot)}
    if not snapshot.blocks or (encoder is None and not layers):
        return
    known = ", ".join(name[:12] for name in layers) or "none"
    if encoder is None:
        raise ModelMismatch(
            f"{model} has no GistNet, and this memory has gists ({known}): open it with the model that they were made for, "
            "or drop them with megacontext regist --remove FINGERPRINT"
        )
    mine = layers.get(encoder.fingerprint)
    if mine is not None and mine.current:
        return
    name = encoder.fingerprint[:12]
    if mine is None:
        what = f"this memory has no gists of {model}'s GistNet ({name}); those there were made by another GistNet ({known})"
    elif mine.behind:
        what = f"the gists of {model}'s GistNet ({name}) cover {mine.blocks:,} of {snapshot.blocks:,} blocks"
    else:
        what = f"the gists of {model}'s GistNet ({name}) still hold blocks that are dead by now"
    where = f" --branch {branch}" if branch else ""
    raise LayerBehind(f"{what}: bring them up to date with megacontext regist --model {model}{where}, which touches no token")


def left_behind(snapshot: Snapshot, encoder: GistEncoder | None) -> tuple[LayerStatus, ...]:
    """The layers of other GistNets that are not those of all that the snapshot sees."""
    mine = encoder.fingerprint if encoder is not None else ""
    return tuple(layer for layer in layers_of(snapshot) if not layer.current and layer.fingerprint != mine)
