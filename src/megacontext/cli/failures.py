"""What goes wrong, in one red line and an exit code.

0 ok · 1 a check found something · 2 bad usage or input · 3 storage · 4 models and training · 70 a bug of ours ·
130 interrupted · 141 the reader of our output went away.
"""

from __future__ import annotations

import os
import traceback

from megacontext.cli import output
from megacontext.errors import (
    AccessDenied,
    IngestError,
    InvalidInput,
    MegaContextError,
    MergeConflict,
    ModelError,
    StorageError,
    TrainingError,
)

FOUND = 1
INPUT = 2
STORAGE = 3
MODEL = 4
BUG = 70
INTERRUPTED = 130
PIPE = 141

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (MergeConflict, FOUND),
    (InvalidInput, INPUT),
    (AccessDenied, INPUT),
    (IngestError, INPUT),
    (StorageError, STORAGE),
    (ModelError, MODEL),
    (TrainingError, MODEL),
    (KeyboardInterrupt, INTERRUPTED),
    (BrokenPipeError, PIPE),
    (MegaContextError, BUG),
    (OSError, STORAGE),
)


def exit_code(error: BaseException) -> int:
    """The exit code that an error stands for."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), BUG)


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell people (one line on stderr) and, with --json, programs (one document on stdout); returns the exit code."""
    code = exit_code(error)
    if code == PIPE:
        output.forget_stdout()
        return code
    details = {"sources": list(error.sources)} if isinstance(error, MergeConflict) else {}
    tell(_message(error, code), type(error).__name__, code, as_json=as_json, **details)
    if os.environ.get("MEGACONTEXT_DEBUG", "0") not in ("", "0"):
        output.note("".join(traceback.format_exception(error)).rstrip())
    return code


def tell(message: str, kind: str, code: int, *, as_json: bool, **details: list[str]) -> int:
    """Say what went wrong, where it is not an exception of ours; returns `code`. `details` are for programs."""
    output.error(message)
    if as_json:
        output.document({"error": {"type": kind, "message": message, **details}})
    return code


def _message(error: BaseException, code: int) -> str:
    if code == INTERRUPTED:
        return "interrupted: what was acknowledged is kept; the same command goes on from there"
    if isinstance(error, OSError) and not isinstance(error, MegaContextError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{(error.strerror or type(error).__name__).lower()}"
    text = " ".join(str(error).split()) or type(error).__name__
    if code == BUG:
        return (
            f"{type(error).__name__}: {text} (a bug in MegaContext, and no fault of yours: please report it with the "
            "output of `megacontext env` and of this command under MEGACONTEXT_DEBUG=1)"
        )
    return text
