"""Search tests are about what is found, not about power cuts."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from megacontext.index import disposable


@pytest.fixture(autouse=True, scope="module")
def _disk_that_need_not_be_waited_for() -> Iterator[None]:
    """A sync shows only when the power fails; here it would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        patch.setattr(disposable, "SYNCHRONOUS", "OFF")
        yield
