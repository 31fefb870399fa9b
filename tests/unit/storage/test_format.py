"""docs/format.md is enough: a memory read by what it says, with none of the package's code."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load
from storage_driver import SPEC, Gister, add, create, ids_of, say

from megacontext.storage import DocumentRecord, MemoryInfo, Repository
from megacontext.storage.closure import COMMIT_FIELDS
from megacontext.storage.format import FORMAT
from megacontext.storage.journal import RecordKind

PAGE = (Path(__file__).parents[3] / "docs" / "format.md").read_text()


def unsealed(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    value: dict[str, Any] = json.loads(data)
    claimed = value.pop("checksum")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.blake2b(text, digest_size=32).hexdigest() == claimed and data.endswith(b"\n")
    return value


class Plain:
    """A reader of the folder `root`, as the page tells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.size = unsealed(root / "megacontext.json")["segment_blocks"]
        self.branch = unsealed(root / "HEAD")["branch"]
        self.head = unsealed(root / "refs/heads" / self.branch)["commit"]

    def bytes(self, name: str) -> bytes:
        data = (self.root / "objects" / name[:2] / name).read_bytes()
        assert hashlib.blake2b(data, digest_size=32).hexdigest() == name
        return data

    def json(self, name: str, kind: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.bytes(name))
        assert value["kind"] == kind
        return value

    def tensors(self, name: str, kind: str) -> dict[str, np.ndarray]:
        with safe_open(self.root / "objects" / name[:2] / name, "np") as file:
            assert file.metadata()["kind"] == kind
        return load(self.bytes(name))

    def items(self, name: str, count: int) -> list[str]:
        """A list's items."""
        depth = 1
        while 32**depth <= count:
            depth += 1
        level = [name] if count else []
        for _ in range(depth):
            level = [bytes(child).hex() for node in level for child in self.tensors(node, "inner")["children"]]
        assert len(level) == count
        return level

    def strand(self, tree: dict[str, Any]) -> list[str]:
        return self.items(tree["root"], tree["segments"]) + tree["pages"]

    def journal(self) -> list[tuple[int, dict[str, np.ndarray], dict[str, str]]]:
        data = (self.root / "journal" / f"{self.branch}.wal").read_bytes()
        assert data[:8] == b"MCJRNL01" and data[8:40].hex() == self.head
        chain, at, records = zlib.crc32(data[:40]), 44, []
        assert chain == struct.unpack("<I", data[40:44])[0]
        while at < len(data):
            length, kind, crc = struct.unpack_from("<IB3xI", data, at)
            chain = zlib.crc32(data[at : at + 8], chain)
            payload = data[at + 12 : at + 12 + length]
            assert crc == chain and data[at + 16 + length : at + 20 + length] == b"NECM"
            chain = zlib.crc32(payload, chain)
            assert struct.unpack_from("<I", data, at + 12 + length)[0] == chain
            header = json.loads(payload[8 : 8 + struct.unpack_from("<Q", payload)[0]])
            records.append((kind, load(payload), header["__metadata__"]))
            at += 20 + length
        return records


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository, gister = create(tmp_path_factory.mktemp("format") / "m"), Gister()
    with repository.writer(layer=SPEC) as writer:
        for number in range(36):
            add(writer, f"d{number}", 33, gister, last=9)
        writer.begin_document(source="raw")
        writer.append_blocks(ids_of("raw", 1), gists=gister.add(ids_of("raw", 1)))
        writer.end_document(original=b"\xff raw")
        writer.remove_document(repository.snapshot().documents[36])
        writer.commit("all")
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(50, dtype=np.uint32), gister)
    return repository


def test_tokens_documents_gists_and_the_journal_are_found(repository: Repository) -> None:
    plain, snapshot = Plain(repository.root), repository.snapshot()
    commit = plain.json(plain.head, "commit")
    assert commit.keys() == COMMIT_FIELDS
    tree = plain.json(commit["tokens"], "token-tree")
    pieces = [plain.tensors(name, "tokens") for name in plain.strand(tree)]
    for name, expected in (("ids", snapshot.tokens(0, tree["blocks"])), ("fill", snapshot.fill(0, tree["blocks"]))):
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), expected)
    documents = plain.json(commit["documents"], "document-tree")
    records = [record for name in plain.strand(documents["records"]) for record in plain.json(name, "documents")["records"]]
    assert [record["source"] for record in records] == [each.source for each in snapshot.documents][: documents["count"]]
    assert plain.bytes(records[36]["original"]) == b"\xff raw" and records[37]["removed"] and records[37]["replaces"] == 36
    dead = plain.tensors(commit["dead"], "dead")["ranges"].tolist()
    assert dead == [[36 * 33, 36 * 33 + 1]]
    (layer,) = commit["layers"].values()
    gists = plain.json(layer, "gist-tree")
    lod1 = np.concatenate([plain.tensors(name, "gists")["lod1"] for name in plain.strand(gists)])
    np.testing.assert_array_equal(lod1, snapshot.gists(1, 0, tree["blocks"]))
    top = plain.tensors(gists["root"], "inner")
    assert tree["blocks"] // 1024 == 1 and gists["segments"] >= 32
    np.testing.assert_array_equal(top["gists"][0], snapshot.gists(3, 0, 1)[0])
    kinds = [kind for kind, _, _ in plain.journal()]
    assert kinds == [RecordKind.BEGIN, RecordKind.TOKENS]
    assert plain.journal()[1][1]["ids"].tolist() == list(range(50))


def test_the_page_names_everything() -> None:
    names = {*COMMIT_FIELDS, *DocumentRecord.__dataclass_fields__, *MemoryInfo.__dataclass_fields__}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
    assert all(f"\n| {int(kind)} | " in PAGE for kind in RecordKind)
    assert f"Format {FORMAT}." in PAGE and f"\n| {FORMAT} | " in PAGE
