"""Refs: branches, tags and HEAD. They move by compare-and-swap; each small file carries its own checksum.

A name may hold slashes; on disk they are quoted, so that `a` and `a/b` can both exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from megacontext.errors import CorruptObject, InvalidInput, ProtectedTag, RefConflict, UnknownReference
from megacontext.storage import files
from megacontext.storage.hashing import Json, is_name, sealed, unsealed

BRANCHES = "heads"
TAGS = "tags"
_VALID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,99}")


def check_name(name: str) -> str:
    """The name itself, if it may name a branch or tag; raises InvalidInput."""
    odd = ".." in name or "//" in name or name.endswith(("/", ".")) or name == "HEAD" or is_name(name)
    if odd or not _VALID.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot name a branch or tag: use up to 100 letters, digits and ._/+@- and start with a letter"
        )
    return name


def quoted(name: str) -> str:
    """The name as one part of a path."""
    return quote(name, safe="")


class Refs:
    """The refs of a memory in the folder `root`. All reads see a whole old or a whole new value."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, kind: str, name: str) -> str | None:
        """The commit that a ref of a kind (BRANCHES or TAGS) names, or None. Raises CorruptObject."""
        path = self._path(kind, name)
        commit = _read(path, "commit")
        if commit is not None and not is_name(commit):
            raise CorruptObject(f"{path} does not name a commit")
        return commit

    def names(self, kind: str) -> list[str]:
        """All names of a kind, sorted."""
        folder = self._root / "refs" / kind
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(unquote(name) for name in found if not name.startswith("."))

    def branch(self, name: str) -> str:
        """The branch's commit; raises UnknownReference with suggestions."""
        commit = self.read(BRANCHES, name)
        if commit is None:
            raise UnknownReference(f"no branch {name!r}{suggestion(name, self.names(BRANCHES))}")
        return commit

    def move(self, kind: str, name: str, before: str | None, after: str | None) -> None:
        """Sets a ref from `before` to `after` (None: not there), durably; raises RefConflict if it is
        not at `before`, ProtectedTag where a protected tag would go. One that is moved stays protected."""
        with self._locked():
            now = self.read(kind, name)
            if now != before:
                raise RefConflict(f"{name} is at {now and now[:12]}, not at {before and before[:12]}; read it again")
            path, protected = self._path(kind, name), self.protected(kind, name)
            if after is None and protected:
                raise ProtectedTag(f"tag {name} is protected; megacontext tag --unprotect {name} lifts that", (name,))
            if after is None:
                files.remove(path)
                files.sync_folder(path.parent)
            else:
                files.replace_file(path, sealed({"commit": after, **({"protected": True} if protected else {})}))

    def protected(self, kind: str, name: str) -> bool:
        """Whether a ref is a protected tag: nothing that it leads to may be erased or pruned. Raises CorruptObject."""
        return bool(_value(self._path(kind, name)).get("protected"))

    def protect(self, tag: str, protected: bool = True) -> bool:
        """Protects a tag, or lifts that, durably; False if it was so already. Raises UnknownReference."""
        with self._locked():
            commit = self.read(TAGS, tag)
            if commit is None:
                raise UnknownReference(f"no tag {tag!r}{suggestion(tag, self.names(TAGS))}")
            if self.protected(TAGS, tag) == protected:
                return False
            files.replace_file(self._path(TAGS, tag), sealed({"commit": commit, **({"protected": True} if protected else {})}))
        return True

    @property
    def head(self) -> str:
        """The name of the current branch; raises CorruptObject if that cannot be told."""
        name = _read(self._root / "HEAD", "branch")
        if name is None:
            raise CorruptObject(f"{self._root / 'HEAD'} is missing")
        return name

    def set_head(self, branch: str) -> None:
        """Makes a branch the current one, durably."""
        with self._locked():
            files.replace_file(self._root / "HEAD", sealed({"branch": branch}))

    def _path(self, kind: str, name: str) -> Path:
        return self._root / "refs" / kind / quoted(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = files.FileLock(self._root / "locks" / ".refs")
        lock.acquire(wait=True, what="the refs")
        try:
            yield
        finally:
            lock.release()


def _read(path: Path, key: str) -> str | None:
    content = _value(path)
    if not content:
        return None
    value = content.get(key)
    if not isinstance(value, str):
        raise CorruptObject(f"{path} is damaged: it says no {key}")
    return value


def _value(path: Path) -> Json:
    """What a small file says; nothing where there is none."""
    try:
        data = path.read_bytes()
    except OSError:  # none, or a name too long to be a file's
        return {}
    try:
        return unsealed(data) or {"": ""}
    except ValueError as error:
        raise CorruptObject(f"{path} is damaged: {error}") from error


def suggestion(name: str, known: list[str]) -> str:
    """The end of a sentence: what was perhaps meant, or what there is."""
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known[:10])}" if known else "; there are none yet"
