"""MegaContext: virtual memory for language models.

::

    import megacontext

    memory = megacontext.open("project.mc")              # made if it is not there
    memory.add("src/", tags=["code"])                    # receipt: documents, tokens, blocks, commit
    with memory.session(budget=1024) as session:
        for piece in session.generate("def parse_"):
            print(piece, end="")
        print(session.strip())                           # the level-of-detail strip

Importing is fast and loads no tensor library; names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megacontext.engine.api import init as init
    from megacontext.engine.api import open as open
    from megacontext.engine.memory import Memory as Memory
    from megacontext.engine.scheduler import Scheduler as Scheduler
    from megacontext.engine.session import Session as Session
    from megacontext.engine.session import SessionConfig as SessionConfig
    from megacontext.errors import MegaContextError as MegaContextError

__version__ = "0.1.0"

_LAZY = {
    "Memory": "megacontext.engine.memory",
    "MegaContextError": "megacontext.errors",
    "Scheduler": "megacontext.engine.scheduler",
    "Session": "megacontext.engine.session",
    "SessionConfig": "megacontext.engine.session",
    "init": "megacontext.engine.api",
    "open": "megacontext.engine.api",
}

__all__ = ["MegaContextError", "Memory", "Scheduler", "Session", "SessionConfig", "__version__", "init", "open"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'megacontext' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
