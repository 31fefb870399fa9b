"""The models that read a memory: one at a time, any number over one memory, and another memory where the tokenizer differs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from megacontext.engine.events import Listener, nobody
from megacontext.engine.label import Labelling
from megacontext.engine.status import LayerStatus, layers_of
from megacontext.errors import ConfigError, ModelMismatch
from megacontext.storage import DocumentRecord, Repository, Snapshot

if TYPE_CHECKING:
    from megacontext.engine.bundle import Bundle
    from megacontext.engine.convert import ConvertReceipt
    from megacontext.engine.kept import Kept
    from megacontext.engine.regist import RegistReceipt


class Layered(Labelling):
    """What a memory can do with models. ``model`` names the one that it is read with."""

    @abstractmethod
    def text(self, document: DocumentRecord, snapshot: Snapshot | None = None) -> str:
        """The text of a document."""

    def __init__(self, repository: Repository, bundle: Bundle | None = None, model: str | None = None) -> None:
        super().__init__(repository)
        self.model = model or repository.info.model
        self._given = bundle

    @cached_property
    def models(self) -> Bundle:
        """The models, whether or not their gists cover the memory. ModelMismatch for another tokenizer."""
        from megacontext.engine.bundle import load_bundle

        bundle = self._given or load_bundle(self.model)
        expected, found = self.repository.info.tokenizer, bundle.base.tokenizer_fingerprint
        if expected != found:
            raise ModelMismatch(
                f"this memory's tokens were made by another tokenizer ({expected[:12]}, not {found[:12]} of "
                f"{self.model}): open it with the model it was made for ({self.repository.info.model}), or make a "
                "memory of the same texts for this model with megacontext convert"
            )
        return bundle

    @cached_property
    def bundle(self) -> Bundle:
        """The models; loaded on first use. ModelMismatch where they do not belong to this memory, LayerBehind where their
        gists do not cover the current branch."""
        from megacontext.engine.regist import check_layer

        check_layer(self.snapshot(), self.models.gists, self.model)
        return self.models

    def kept(self, lod: int, index: int, snapshot: Snapshot | None = None) -> list[Kept]:
        """The tokens that a node's key/value gist keeps, best first; nothing where this model has other gists, or the memory
        none of its own."""
        from megacontext.engine.kept import kept_tokens

        def word(ids: list[int]) -> str:
            text: str = self.models.tokenizer.decode(ids, skip_special_tokens=False)
            return text

        return kept_tokens(snapshot or self.snapshot(), self.models, [(lod, index)], word)[0]

    def layers(self, reference: str | None = None) -> tuple[LayerStatus, ...]:
        """The gist layers of a branch (default: the current one), tag or commit, and how much of it they cover."""
        return layers_of(self.snapshot(reference))

    def regist(self, *, branch: str | None = None, author: str = "", listener: Listener = nobody) -> RegistReceipt:
        """Lay the gists of this model's GistNet over a branch, or bring them up to date; no token is touched.

        What is committed stays when it is interrupted, and the next call goes on behind it.
        """
        from megacontext.engine.regist import regist

        models = self.models
        if models.gists is None:
            raise ConfigError(f"{self.model} has no GistNet: train one with megacontext train gist, or choose another model")
        return regist(
            self.repository, models.base, models.gists, branch=branch, model=self.model, author=author, listener=listener
        )

    def remove_layer(self, fingerprint: str, *, branch: str | None = None, author: str = "") -> tuple[str, str]:
        """Drop the gists of a GistNet (the first digits of its fingerprint do) in a new commit; returns both names."""
        from megacontext.engine.regist import remove_layer

        return remove_layer(self.repository, fingerprint, branch=branch, author=author)

    def convert(
        self,
        path: str | Path,
        *,
        model: str | Path,
        branches: Sequence[str] = (),
        history: bool = False,
        skip_pruned: bool = False,
        author: str = "",
        listener: Listener = nobody,
    ) -> ConvertReceipt:
        """Make a memory of the same texts for a model with another tokenizer, in a new folder; see ``engine.convert``.

        ``branches`` (default: the current one) keep their names; with ``history`` each of their commits becomes one. Called
        again after an interruption, or when this memory has grown, it goes on. ``skip_pruned`` leaves out documents whose raw
        tokens are in an archive that is not at hand.
        """
        from megacontext.engine.convert import convert, opened_for

        new = opened_for(self.repository, path, model, branches)
        options = {"history": history, "skip_pruned": skip_pruned}
        return convert(self, new, branches=branches, author=author, listener=listener, **options)

    def unpruned(self) -> Self:
        """The same memory with the raw tokens of what is pruned, which are read in their archives."""
        return type(self)(self.repository.unpruned(), self._given, self.model)
