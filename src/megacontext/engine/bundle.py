"""The models that work together: a frozen base, the GistNet made for it, the LensNet made for both.

A *bundle* is a folder with ``base/`` and, as far as they were trained, ``gistnet/`` and ``lensnet/``.
Any other folder or hub id is a plain base: it works without gists (raw blocks, retrieval focus).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.engine.model_folder import BUNDLED as BUNDLED
from megacontext.engine.model_folder import bundled_folder as bundled_folder
from megacontext.engine.model_folder import folder_of
from megacontext.errors import ModelMismatch
from megacontext.models import BaseLM, GistEncoder, LensNet
from megacontext.models.encoders import load_gistnet


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """``gists`` is None for a base without a GistNet, ``lens`` None where no LensNet was trained."""

    name: str
    base: BaseLM
    gists: GistEncoder | None = None
    lens: LensNet | None = None

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self.base.tokenizer

    @property
    def missing(self) -> tuple[str, ...]:
        """What this bundle has to do without, in words for people."""
        lacks = []
        if self.gists is None:
            lacks.append("no GistNet was trained for this base: far context is read as raw blocks only, nothing as gists")
        if self.lens is None:
            lacks.append("no LensNet was trained for this base: focus follows retrieval (BM25)")
        return tuple(lacks)


def load_bundle(model: str | Path) -> Bundle:
    """Load ``"bundled"``, a bundle folder, or a plain base by folder or hub id.

    Raises ModelNotFound, CorruptCheckpoint, UnsupportedModel, and ModelMismatch where the parts were not made for each
    other.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment; its bars would stand among our own output
    name = str(model)
    folder = folder_of(name)
    whole = (folder / "base" / "config.json").is_file()
    base = BaseLM.from_pretrained(folder / "base" if whole else name)
    gists_at, lens_at = folder / "gistnet", folder / "lensnet"
    gists = load_gistnet(gists_at) if whole and gists_at.is_dir() else None
    lens = LensNet.from_pretrained(lens_at) if whole and lens_at.is_dir() else None
    if gists is not None and gists.config.base_fingerprint != base.fingerprint:
        raise ModelMismatch(
            f"the GistNet in {gists_at} was trained for another base ({gists.config.base_fingerprint[:12]}, not "
            f"{base.fingerprint[:12]}): use that base, or train one for this: megacontext train gist"
        )
    if lens is not None and (gists is None or lens.config.gist_fingerprint != gists.fingerprint):
        raise ModelMismatch(f"the LensNet in {lens_at} was trained for another GistNet: run megacontext train lens")
    return Bundle(name=name, base=base, gists=gists, lens=lens)
