"""Archives that are cut, damaged or made to do harm: a typed error, and no trace. And an import that is killed."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import SPEC, Gister, add, create
from test_crash import Disk

from megacontext.errors import ArchiveError, FormatVersionError, InvalidInput, MegaContextError, StorageFull
from megacontext.storage import Repository
from megacontext.storage.export import prepare_export
from megacontext.storage.hashing import canonical, digest
from megacontext.storage.importing import import_archive
from megacontext.storage.tar import END, header, padding
from megacontext.testing.content import content_of


@dataclass
class Kit:
    """An archive taken apart, to be put together again in another way."""

    manifest: dict[str, Any]
    files: dict[str, bytes]
    objects: dict[str, bytes]
    kinds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Kit:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        kinds = {line.split()[0]: line.split()[2] for line in members.pop("objects.txt").decode().splitlines()}
        manifest = json.loads(members.pop("manifest.json"))
        objects = {name[-64:]: data for name, data in members.items() if name.startswith("objects/")}
        files = {name: data for name, data in members.items() if not name.startswith("objects/")}
        return cls(manifest, files, objects, kinds)

    def members(self) -> list[tuple[str, bytes]]:
        """As the real ones, with a list that fits the objects."""
        listing = "".join(f"{name} {len(data)} {self.kinds.get(name, 'original')}\n" for name, data in self.objects.items())
        manifest = {"objects": len(self.objects), "object_bytes": sum(map(len, self.objects.values()))}
        front = {"manifest.json": json.dumps({**manifest, **self.manifest}).encode(), "objects.txt": listing.encode()}
        objects = {f"objects/{name[:2]}/{name}": data for name, data in self.objects.items()}
        return list({**front, **self.files, **objects}.items())

    def pack(self) -> bytes:
        return tar(self.members())

    def put(self, data: bytes) -> str:
        self.objects[digest(data)] = data
        return digest(data)

    def head(self, **changes: Any) -> bytes:
        """Packed with another commit, and nothing that only the old one needed."""
        old = self.manifest["branches"]["main"]
        commit = self.put(canonical({**json.loads(self.objects.pop(old)), **changes}))
        self.manifest["branches"] = {"main": commit}
        return self.pack()

    def instead(self, kind: str, change: Callable[[dict[str, Any]], dict[str, Any]], of: str) -> bytes:
        """Packed with another object of a kind, which the commit names as `of`."""
        old = next(name for name, each in self.kinds.items() if each == kind)
        new = self.put(canonical(change(json.loads(self.objects.pop(old)))))
        return self.head(**{of: new})


def tar(members: list[tuple[str, bytes]]) -> bytes:
    return b"".join(header(name, len(data)) + data + padding(len(data)) for name, data in members) + END


def special(kind: bytes, name: str = "manifest.json", link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One commit with one document and a gist layer."""
    path = tmp_path_factory.mktemp("small") / "m"
    repository = create(path, tokenizer="tok", tokenizer_files={"tokenizer.json": b"{}"})
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 34, Gister())
        writer.commit("one", time=3.0)
    return b"".join(prepare_export(repository).parts())


def fields(**changes: Any) -> Callable[[Kit], bytes]:
    """Another manifest."""
    return lambda kit: replace(kit, manifest={**kit.manifest, **changes}).pack()


def memory(**changes: Any) -> Callable[[Kit], bytes]:
    return lambda kit: replace(kit, manifest={**kit.manifest, "memory": {**kit.manifest["memory"], **changes}}).pack()


def tokens(**changes: Any) -> Callable[[Kit], bytes]:
    return lambda kit: kit.instead("token-tree", lambda value: {**value, **changes}, "tokens")


def renamed(old: str, new: str) -> Callable[[Kit], bytes]:
    """A member under another name."""
    return lambda kit: tar([(name if not name.startswith(old) else new, data) for name, data in kit.members()])


def inserted(raw: bytes, at: int = 0) -> Callable[[Kit], bytes]:
    return lambda kit: tar(kit.members()[:at])[: -len(END)] + raw + tar(kit.members()[at:])


def records(**changes: Any) -> Callable[[Kit], bytes]:
    """A record of a document that says something else."""

    def pack(kit: Kit) -> bytes:
        old = next(name for name, each in kit.kinds.items() if each == "documents")
        page = json.loads(kit.objects.pop(old))
        new = kit.put(canonical({**page, "records": [{**page["records"][0], **changes}]}))
        return kit.instead(
            "document-tree", lambda value: {**value, "records": {**value["records"], "pages": [new]}}, "documents"
        )

    return pack


def endless(key: str) -> Callable[[Kit], bytes]:
    """A token tree with a number that JSON reads as infinity."""

    def pack(kit: Kit) -> bytes:
        old = next(name for name, each in kit.kinds.items() if each == "token-tree")
        value = kit.objects.pop(old)
        start = value.index(f'"{key}":'.encode()) + len(key) + 3
        new = kit.put(value[:start] + b"1e999" + value[start:].lstrip(b"0123456789"))
        return kit.head(tokens=new)

    return pack


HUGE = 10**18
HOSTILE: dict[str, Callable[[Kit], bytes]] = {
    "nothing": lambda kit: b"",
    "zeros": lambda kit: bytes(4096),
    "a zip": lambda kit: b"PK\3\4" + bytes(2000),
    "a gzip": lambda kit: b"\x1f\x8b\x08" + bytes(2000),
    "a path upwards": renamed("tokenizer/", "../../outside"),
    "an absolute path": renamed("objects/", "/tmp/outside"),
    "a path within": renamed("objects/", "refs/heads/main"),
    "a member twice": lambda kit: tar([*kit.members()[:3], *kit.members()[2:]]),
    "a member more": lambda kit: tar([*kit.members(), ("megacontext.json", b"{}")]),
    "a member less": lambda kit: tar(kit.members()[:-1]),
    "members in another order": lambda kit: tar(kit.members()[:-2] + kit.members()[:-3:-1]),
    "a symbolic link": inserted(special(tarfile.SYMTYPE, "objects", "/etc")),
    "a hard link": inserted(special(tarfile.LNKTYPE, "tokenizer/tokenizer.json", "/etc/passwd"), 2),
    "a device": inserted(special(tarfile.CHRTYPE, "tokenizer/tokenizer.json"), 2),
    "a pipe": inserted(special(tarfile.FIFOTYPE), 0),
    "a folder": inserted(special(tarfile.DIRTYPE, "objects"), 3),
    "a sparse file of a terabyte": inserted(special(tarfile.GNUTYPE_SPARSE, size=2**40)),
    "a long name of a terabyte": inserted(special(tarfile.GNUTYPE_LONGNAME, "././@LongLink", size=2**40)),
    "attributes of a terabyte": inserted(special(tarfile.XHDTYPE, "x", size=2**40)),
    "a manifest of a terabyte": lambda kit: special(tarfile.REGTYPE, size=2**40) + bytes(4096),
    "a size below nothing": lambda kit: special(tarfile.REGTYPE, size=-512) + bytes(4096),
    "a manifest that is no JSON": lambda kit: tar([("manifest.json", b"\0" * 10)]),
    "a manifest without a bottom": lambda kit: tar([("manifest.json", b'{"a":' * 100_000)]),
    "a manifest that is a list": lambda kit: tar([("manifest.json", b"[]")]),
    "another kind": fields(kind="other"),
    "no branches": fields(branches={}),
    "branches that are a list": fields(branches=["main"]),
    "a branch that names no commit": fields(branches={"main": "../../etc/passwd"}),
    "a branch that names nothing there": fields(branches={"main": "0" * 64}),
    "a head elsewhere": fields(head="other"),
    "more objects than there are": fields(objects=HUGE),
    "fewer objects than there are": fields(objects=1),
    "less than there is": fields(object_bytes=1),
    "sizes that are no numbers": fields(objects="many"),
    "history that is a number": fields(history=7),
    "a tokenizer file with a path": memory(tokenizer_files={"../../evil": "0" * 64}),
    "a tokenizer file with other bytes": memory(tokenizer_files={"tokenizer.json": "0" * 64}),
    "a tokenizer file that is not there": memory(tokenizer_files={"a": "0" * 64}),
    "tokenizer files that are a list": memory(tokenizer_files=[1]),
    "segments of no size": memory(segment_blocks=0),
    "a parent that is not there": lambda kit: kit.head(parents=["0" * 64]),
    "a parent with a path": lambda kit: kit.head(parents=["/dev/zero"]),
    "tokens with a path": lambda kit: kit.head(tokens="/dev/zero"),
    "tokens that are a number": lambda kit: kit.head(tokens=7),
    "tokens that are a list": lambda kit: kit.head(tokens=["a"]),
    "layers that are a list": lambda kit: kit.head(layers=[1, 2]),
    "what nobody knows yet": lambda kit: kit.head(attachments=["0" * 64]),
    "a length that is not true": lambda kit: kit.head(blocks=35),
    "an absurd length": lambda kit: kit.head(blocks=HUGE),
    "a length that is no whole number": tokens(blocks=34.0),
    "an endless length": endless("blocks"),
    "endless segments": endless("segments"),
    "very many segments": tokens(segments=10**30),
    "segments below none": tokens(segments=-1),
    "pages that are text": tokens(pages="abc"),
    "a document of absurd length": records(blocks=HUGE, tokens=HUGE),
    "a document below nothing": records(start_block=-5),
    "a document elsewhere": records(start_block=1),
    "a document with an original elsewhere": records(original="/etc/passwd"),
    "a document that is a number": records(source=7, blocks="x"),
    "an object that nothing names": lambda kit: (kit.put(b"stuffing"), kit.pack())[1],
    "a damaged object": lambda kit: tar([*kit.members()[:-1], (kit.members()[-1][0], bytes(len(kit.members()[-1][1])))]),
    "a list without an end": lambda kit: tar([kit.members()[0], ("objects.txt", b"0" * 500)]),
    "a list of nonsense": lambda kit: tar([kit.members()[0], ("objects.txt", b"../../x 1 tokens\n" * 12)]),
    "a list with an object twice": lambda kit: tar([kit.members()[0], ("objects.txt", (b"0" * 64 + b" 1 tokens\n") * 12)]),
    "a list with an absurd size": lambda kit: tar([kit.members()[0], ("objects.txt", b"0" * 64 + b" 999999999999 tokens\n")]),
}


def trace(folder: Path) -> dict[str, bytes]:
    """All files that are seen: locks and empty staging folders are nobody's."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("how", HOSTILE)
def test_it_is_refused_without_a_trace(how: str, small: bytes, tmp_path: Path) -> None:
    data = HOSTILE[how](Kit.of(small))
    mine = create(tmp_path / "mine", tokenizer="tok")
    before = trace(tmp_path)
    for path, prefix in ((tmp_path / "new", ""), (mine.root, "theirs")):
        with pytest.raises(ArchiveError):
            import_archive(io.BytesIO(data), path, prefix=prefix)
        assert trace(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_the_kit_makes_what_is_taken(small: bytes, tmp_path: Path) -> None:
    """Or none of the above would say anything."""
    assert import_archive(io.BytesIO(Kit.of(small).pack()), tmp_path / "new").new > 5
    assert Repository.open(tmp_path / "new").fsck().clean


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (fields(branches={"../up": "0" * 64}, head="../up"), InvalidInput),
        (fields(version=3), FormatVersionError),
        (memory(format=9), FormatVersionError),
        (memory(segment_blocks=1024), ArchiveError),
    ],
)
def test_other_typed_errors(how: Callable[[Kit], bytes], error: type[MegaContextError], small: bytes, tmp_path: Path) -> None:
    with pytest.raises(error):
        import_archive(io.BytesIO(how(Kit.of(small))), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(StorageFull, match="less room"):
        import_archive(io.BytesIO(small), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_cut_and_every_flipped_bit_is_refused_or_changes_nothing(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "new"
    if data.draw(st.booleans()):
        changed = small[: data.draw(st.integers(0, len(small) - len(END)))]
    else:
        bit = data.draw(st.integers(0, len(small) * 8 - 1))
        flipped = bytearray(small)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = bytes(flipped)
    try:
        import_archive(io.BytesIO(changed), path)
    except MegaContextError:
        assert list(path.parent.iterdir()) == []
        return
    # In padding, a time, a text of the manifest: what is kept is whole.
    assert Repository.open(path).fsck().clean and Repository.open(path).commit().message == "one"
    shutil.rmtree(path.parent)


def test_a_crash_at_any_step_shows_nothing_or_all(small: bytes, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quick_path / "here"
    folder.mkdir()
    mine = create(folder / "mine", tokenizer="tok")
    before = content_of(mine.snapshot())
    images: list[Path] = []

    def crash() -> None:
        images.append(quick_path / f"image{len(images)}")
        shutil.copytree(folder, images[-1])

    with Disk(crash).installed(monkeypatch):
        import_archive(io.BytesIO(small), folder / "new")
        import_archive(io.BytesIO(small), mine.root, prefix="x")
    whole = content_of(Repository.open(folder / "new").snapshot())
    assert len(images) > 40
    for image in images[:: max(len(images) // 12, 1)]:
        survivor = Repository.open(image / "mine")
        assert survivor.fsck().clean and content_of(survivor.snapshot()) == before
        if "x/main" in survivor.branches():
            assert content_of(survivor.snapshot("x/main")) == whole
        if not (image / "new").exists():
            import_archive(io.BytesIO(small), image / "new")
        assert content_of(Repository.open(image / "new").snapshot()) == whole
        import_archive(io.BytesIO(small), image / "mine", prefix="x")
        assert sorted(path.name for path in image.iterdir()) == ["mine", "new"]
        assert survivor.fsck().clean and survivor.fsck().notes == ()


SCRIPT = """
import sys
from pathlib import Path
from megacontext.storage.importing import import_archive
print("begun", flush=True)
import_archive(open(sys.argv[1], "rb"), Path(sys.argv[2]), prefix=sys.argv[3])
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "x"])
def test_kill_9_in_an_import(tmp_path: Path, prefix: str) -> None:
    source = create(tmp_path / "source", tokenizer="tok")
    with source.writer() as writer:
        for number in range(40):
            add(writer, f"s{number}", 33)
            writer.commit(str(number))
    (tmp_path / "a.tar").write_bytes(b"".join(prepare_export(source, history=True).parts()))
    whole = content_of(source.snapshot())
    target = tmp_path / "here" / "m"
    target.parent.mkdir()
    if prefix:
        create(target, tokenizer="tok")
    random, kills, done = np.random.default_rng(int(time.time())), 0, False
    while not done:
        words = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.tar"), str(target), prefix]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        if kills < 6:
            time.sleep(float(random.random()) * 0.6)
            process.send_signal(signal.SIGKILL)
            kills += 1
        done = process.communicate()[0] == "done\n"
        if (target / "megacontext.json").exists():
            repository = Repository.open(target)
            assert repository.fsck().clean
            branch = f"{prefix}/main" if prefix else "main"
            if not prefix or branch in repository.branches():
                assert content_of(repository.snapshot(branch)) == whole
                done = True
    assert kills and [path.name for path in target.parent.iterdir()] == ["m"]
