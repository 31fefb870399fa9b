"""Taking a gist layer off a branch. Its tokens, and the older commits that have the layer, stay as they are."""

from __future__ import annotations

import time as clock
from dataclasses import replace

from megacontext.errors import UnknownReference
from megacontext.storage.hold import BranchHold


class LayerDrop(BranchHold):
    """Drops layers; get it from `Repository.drop_layer`."""

    def drop(self, fingerprint: str, *, message: str = "", author: str = "", time: float | None = None) -> str:
        """Makes a commit without this layer, durably, and returns its name; raises UnknownReference if there is none.

        What the branch's journal holds is committed first. A document that was left unfinished with gists of this layer is
        dropped, as when it is begun with another one.
        """
        if self._journal.records:
            self.commit("Settled before a gist layer is dropped", author)
        layers = dict(self._state.base.commit.layers)
        if layers.pop(fingerprint, None) is None:
            raise UnknownReference(f"no gist layer {fingerprint}; there are: {', '.join(sorted(layers)) or 'none'}")
        if self._state.spec is not None and self._state.spec.fingerprint == fingerprint:
            # Before the layer goes: its gists in the journal could not be read without it.
            self._reload(None)
        base = self._state.base
        commit = replace(
            base.commit,
            layers=layers,
            parents=(base.name,),
            author=author,
            time=clock.time() if time is None else time,
            message=message,
        )
        try:
            return self._publish(commit)
        except BaseException:
            self._store.discard()
            raise
