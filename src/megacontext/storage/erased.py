"""What was erased and is not to come back: keyed hashes of names and of texts' hashes, in `erased.json`.

The hashes tell nobody a name, but whoever has a name or a text can ask whether it is on the list. The list belongs to the
memory and travels with it. A memory that takes in another one keeps that one's list beside its own, each with its key.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from megacontext.errors import CorruptObject
from megacontext.storage import audit, files
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.hashing import Json, sealed, unsealed

FILE = "erased.json"
_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class KeyedList:
    """The hashes made with one `key` (hexadecimal)."""

    key: str
    sources: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    def hash(self, text: str) -> str:
        """The keyed hash of a name or of a text's hash."""
        return hashlib.blake2b(text.encode("utf-8"), key=bytes.fromhex(self.key), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ErasedList:
    """Immutable; the first of the `lists` is this memory's own, the others came in from elsewhere."""

    lists: tuple[KeyedList, ...] = field(default_factory=lambda: (KeyedList(key=secrets.token_hex(_KEY_BYTES)),))

    def __bool__(self) -> bool:
        return any(each.sources or each.texts for each in self.lists)

    def reason(self, source: str, text_hash: str = "") -> str:
        """Why a document of this name, whose text has this hash, may not come in, as the end of a sentence; '' if it may."""
        if any(each.hash(source) in each.sources for each in self.lists):
            return "a document of this name was erased from this memory"
        if text_hash and any(each.hash(text_hash) in each.texts for each in self.lists):
            return "its text was erased from this memory"
        return ""

    def refuses(self, record: DocumentRecord) -> str:
        """The same for a document's record."""
        return self.reason(record.source, record.text_hash)

    def key_hash(self, text: str) -> str:
        """How this memory's audit log calls a name."""
        return self.lists[0].hash(text)

    def with_erased(self, sources: Iterable[str], texts: Iterable[str]) -> ErasedList:
        """With these names and hashes of texts as well."""
        own = self.lists[0]
        more = replace(
            own,
            sources=own.sources | {own.hash(source) for source in sources},
            texts=own.texts | {own.hash(text) for text in texts if text},
        )
        return ErasedList((more, *self.lists[1:]))

    def without(self, source: str, text_hash: str) -> ErasedList:
        """Without a name and a text's hash: they may come in again."""
        return ErasedList(
            tuple(
                replace(each, sources=each.sources - {each.hash(source)}, texts=each.texts - {each.hash(text_hash)})
                for each in self.lists
            )
        )

    def joined(self, other: ErasedList) -> ErasedList:
        """With what another memory's list refuses; lists of one key become one."""
        lists = {each.key: each for each in self.lists}
        for each in other.lists:
            known = lists.get(each.key, each)
            lists[each.key] = replace(known, sources=known.sources | each.sources, texts=known.texts | each.texts)
        return ErasedList(tuple(lists.values()))

    def to_json(self) -> Json:
        """The list as plain data, for archives."""
        return {
            "lists": [{"key": each.key, "sources": sorted(each.sources), "texts": sorted(each.texts)} for each in self.lists]
        }

    @classmethod
    def from_json(cls, value: Json) -> ErasedList:
        """The inverse of `to_json`; raises CorruptObject for anything else, which may come from anybody."""
        try:
            lists = []
            for each in value["lists"]:
                hashes = [*each["sources"], *each["texts"]]
                if len(bytes.fromhex(each["key"])) != _KEY_BYTES or not all(isinstance(one, str) for one in hashes):
                    raise ValueError("a key or a hash has another form")
                lists.append(KeyedList(key=each["key"], sources=frozenset(each["sources"]), texts=frozenset(each["texts"])))
            return cls(tuple(lists)) if lists else cls()
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptObject(f"the list of what was erased is not well formed ({error!r})") from error


def load_erased(root: Path) -> ErasedList:
    """The list of the memory at `root`; an empty one with a new key where there is none. Raises CorruptObject."""
    path = root / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ErasedList()
    try:
        return ErasedList.from_json(unsealed(data))
    except ValueError as error:
        raise CorruptObject(f"{path} is damaged: {error}") from error


def save_erased(root: Path, erased: ErasedList) -> None:
    """Replaces the list, durably. Whoever changes it holds `changing`."""
    files.replace_file(root / FILE, sealed(erased.to_json()))


@contextmanager
def changing(root: Path) -> Iterator[None]:
    """While this lasts nobody else changes the list."""
    lock = files.FileLock(root / "locks" / ".erased")
    try:
        lock.acquire(wait=True, what="the list of what was erased")
        yield
    finally:
        lock.release()


def readmit(root: Path, source: str, text_hash: str) -> bool:
    """Lets a name and a text come in again, durably; False if nothing refused them."""
    with changing(root):
        erased = load_erased(root)
        if not erased.reason(source, text_hash):
            return False
        save_erased(root, erased.without(source, text_hash))
    return True


def door(root: Path, *, allow: bool = False, author: str = "") -> Callable[[str, str], str]:
    """What says of a name and a text's hash why they may not come into the memory at `root` ('' if they may). With `allow` all
    may, and what comes in is taken off the list, which the audit log tells."""
    erased = load_erased(root)
    if not erased:
        return lambda source, text_hash: ""
    if not allow:
        return erased.reason

    def admit(source: str, text_hash: str) -> str:
        if readmit(root, source, text_hash):
            audit.append(root, "readmit", {"source": erased.key_hash(source)}, author=author)
        return ""

    return admit


def take_in(root: Path, other: ErasedList) -> None:
    """Adds what another memory's list refuses to that of the memory at `root`, durably; one without a list gets this one."""
    if other:
        with changing(root):
            save_erased(root, load_erased(root).joined(other) if (root / FILE).exists() else other)
