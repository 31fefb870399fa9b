"""A canary in a document that a reader is denied: no word of it, no token and no gist over it comes out of anything."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core import WorkingContext, invariants
from megacontext.engine.assemble import slots_of
from megacontext.engine.bundle import Bundle
from megacontext.engine.checks import SessionChecks
from megacontext.engine.events import Event, TokenDecoded
from megacontext.engine.memory import Memory
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.session import SessionConfig
from megacontext.errors import AccessDenied, ConfigError, InvalidInput, UnknownReference
from megacontext.storage import Repository

CANARY = "quagga"
SECRET = "".join(f"The {CANARY} {n} sleeps in barn {n * 3 % 11}.\n" for n in range(1, 60))
PLAIN = "".join(f"Line {n} is about the harvest of {n * 7 % 13} fields.\n" for n in range(1, 60))
SAMPLED = SamplingConfig(temperature=1.0, seed=3)


@contextmanager
def memory_of(parts: list[tuple[int, bool]], bundle: Bundle) -> Iterator[Memory]:
    """A memory of plain documents and ones with the canary, of so many lines each; those have the label `secret`."""
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(_create(Path(folder) / "m.mc", bundle), bundle)
        for n, (lines, secret) in enumerate(parts):
            text = "".join((SECRET if secret else PLAIN).splitlines(keepends=True)[:lines])
            name = f"{CANARY if secret else 'plain'}-{n}"
            memory.add(text=text, name=name, labels=["secret"] if secret else [], message=f"added {name}")
        yield memory


def _create(path: Path, bundle: Bundle) -> Repository:
    return Repository.create(path, tokenizer=bundle.base.tokenizer_fingerprint, model="tiny", tokenizer_files=_files(bundle))


def _files(bundle: Bundle) -> dict[str, bytes]:
    from megacontext.engine.tokenizer_files import tokenizer_files

    return tokenizer_files(bundle.tokenizer)


def everything(reader: Memory) -> str:
    """All that a reader can ask of a memory, as text."""
    found: list[Any] = [reader.status().to_json(), reader.labels(), reader.diff("main").documents]
    view = reader.snapshot()
    for record in view.documents:
        found += [record.to_json(), reader.text(record, view), reader.labels_of(record.source).to_json()]
    for name, commit in reader.log():
        found += [str(commit), str(reader.changes(name)), str(reader.diff("main", name))]
    for query in (CANARY, f"The {CANARY} 3 sleeps", "sleeps in barn", "harvest"):
        found += [hit.to_json() for hit in reader.search(query, limit=30)]
    for name in (CANARY, f"text:{CANARY}-0", "nothing"):
        with pytest.raises(UnknownReference) as refused:
            reader.find_document(name)
        found.append(str(refused.value).replace(repr(name), ""))
    return json.dumps(found, default=str)


def gist_rows(whole: Memory, denied: np.ndarray) -> set[bytes]:
    """The vectors of all gists that hold a denied block."""
    layer, rows, span, lod = whole.snapshot().layer(), set(), 1, 1
    while count := layer.count(lod):
        bad = np.flatnonzero(denied[: count * span].reshape(count, span).any(axis=1))
        rows |= {row.tobytes() for row in layer.gists_at(lod, bad).reshape(-1, layer.spec.width)}
        span, lod = span * 32, lod + 1
    return rows


def shown(window: WorkingContext, view: Any) -> tuple[list[int], set[bytes]]:
    """What the base is shown of a window: token ids, and gist vectors."""
    slots = slots_of(window, view, view.open_ids.astype(np.int64), gists=True)
    return slots.token[slots.token >= 0].tolist(), {row.tobytes() for row in slots.vectors}


PARTS = st.lists(st.tuples(st.integers(1, 59), st.booleans()), min_size=2, max_size=5).filter(
    lambda parts: any(secret for _, secret in parts)
)


@settings(derandomize=True, deadline=None, max_examples=4)
@given(parts=PARTS)
def test_no_call_gives_a_canary_away(parts: list[tuple[int, bool]], loaded: Bundle) -> None:
    with memory_of(parts, loaded) as whole:
        reader = Memory(Repository.open(whole.repository.root, deny=["secret"]), loaded)
        assert CANARY in everything_of_whole(whole)
        assert CANARY not in everything(reader)
        record_blocks = [record.span for record in whole.snapshot().documents if "secret" in record.labels]
        denied = np.zeros(whole.snapshot().blocks, bool)
        for start, stop in record_blocks:
            denied[start:stop] = True
        forbidden = gist_rows(whole, denied)
        config = SessionConfig(budget=320, recent=32, refocus_every=8)
        windows: list[WorkingContext] = []

        def listener(event: Event) -> None:
            checks(event)
            if isinstance(event, TokenDecoded):
                windows.append(session.window)

        for policy in ("retrieval", "random", "lens"):
            checks = SessionChecks(lambda record: None)
            with reader.session(name=policy, config=config, policy=policy, listener=listener) as session:  # type: ignore[arg-type]
                checks.watch(session)
                list(session.generate(f"The {CANARY[:3]}", max_new_tokens=17, sampling=SAMPLED, stop_at_eos=False))
                assert CANARY not in json.dumps([str(each) for each in session.explain()]) + session.strip()
                view = session.snapshot
                ids, vectors = shown(session.window, view)
            assert CANARY not in loaded.tokenizer.decode(ids)
            assert not vectors & forbidden
        for window in windows:
            invariants.check_window(window)
            invariants.isolation(window, window.lod, window.index, record_blocks)
        assert CANARY not in everything(reader)  # sessions have branches now, and the index is there


def everything_of_whole(whole: Memory) -> str:
    """That the canary is there to be found."""
    return json.dumps([hit.to_json() for hit in whole.search(CANARY)] + [str(whole.snapshot().documents.find("x"))])


def test_a_label_on_lines_denies_their_blocks_and_no_more(loaded: Bundle) -> None:
    with memory_of([(59, False)], loaded) as whole:
        found = whole.label("plain-0", lines=(20, 22), add=["secret"], message="a reason")
        record = whole.find_document("plain-0")
        assert found.blocks["secret"] < record.blocks / 4 and found.labels == () and found.of == record.blocks
        assert next(commit.message for _, commit in whole.log()) == "a reason"
        reader = Memory(Repository.open(whole.repository.root, deny=["secret"]), loaded)
        text = reader.text(reader.find_document("plain-0"))
        assert not any(f"Line {n} " in text for n in (20, 21, 22))
        assert all(f"Line {n} " in text for n in (*range(1, 18), *range(26, 60)))
        assert not any(f"Line {n} " in hit.text for n in (20, 21, 22) for hit in reader.search("Line 21 is about", 50))
        whole.label("plain-0", lines=(20, 22), remove=["secret"])
        assert reader.text(reader.find_document("plain-0")) == PLAIN and whole.labels() == {}


def test_labels_and_tags_of_documents_change_in_commits_of_their_own(loaded: Bundle) -> None:
    with memory_of([(10, False), (10, False)], loaded) as memory:
        before = memory.snapshot().commit_name
        found = memory.label("plain-0", add=["a", "b"], tag=["t"])
        assert (found.labels, found.tags, found.blocks) == (("a", "b"), ("t",), {"a": found.of, "b": found.of})
        assert memory.label("plain-0", remove=["a"], untag=["t"]).labels == ("b",)
        assert memory.find_document("plain-0").labels == ("b",) and memory.find_document("plain-0").tags == ()
        assert memory.find_document("plain-0", memory.snapshot(before)).labels == ()
        assert memory.find_document("plain-1").labels == () and memory.labels() == {"b": found.of}
        same = memory.snapshot().commit_name
        assert memory.label("plain-0", add=["b"]).commit == same == memory.label("plain-0").commit
        assert "plain-0" not in memory.snapshot().commit.message  # whom it is denied could read it in the log


def test_what_is_added_again_is_labelled_and_a_new_version_stays_so(loaded: Bundle) -> None:
    with memory_of([(20, False)], loaded) as memory:
        text = memory.text(memory.find_document("plain-0"))
        assert memory.add(text=text, name="plain-0", labels=["secret"]).unchanged == ("text:plain-0",)
        memory.add(text=PLAIN, name="plain-0")
        reader = Memory(Repository.open(memory.repository.root, deny=["secret"]), loaded)
        assert list(reader.snapshot().documents) == []
        memory.remove("plain-0")
        memory.add(text=SECRET, name="plain-0")
        assert list(reader.snapshot().documents) == [] and memory.find_document("plain-0").labels == ("secret",)
        for name, _ in memory.log():
            timeline = reader.snapshot(name).timeline()
            assert timeline.present(0, timeline.blocks).size == 0


def test_a_merge_brings_the_labels_of_parts(loaded: Bundle) -> None:
    with memory_of([(5, False)], loaded) as memory:
        memory.branch("side")
        memory.checkout("side")
        memory.add(text=PLAIN, name="late")
        part = memory.label("late", lines=(30, 31), add=["secret"]).blocks["secret"]
        memory.checkout("main")
        memory.add(text=PLAIN[:400], name="between")
        memory.merge("side")
        memory.repository.delete_branch("side")
        found = memory.labels_of("late")
        assert found.blocks == {"secret": part} and found.labels == ()
        reader = Memory(Repository.open(memory.repository.root, deny=["secret"]), loaded)
        assert "Line 30 " not in reader.text(reader.find_document("late"))


def test_a_reader_that_is_denied_something_changes_nothing(loaded: Bundle) -> None:
    with memory_of([(10, True), (10, False)], loaded) as whole:
        reader = Memory(Repository.open(whole.repository.root, deny=["secret"]), loaded)
        for attempt in (
            lambda: reader.add(text="x", name="y"),
            lambda: reader.remove("plain-1"),
            lambda: reader.label("plain-1", add=["x"]),
            lambda: reader.regist(),
            lambda: reader.fsck(),
        ):
            with pytest.raises(AccessDenied):
                attempt()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"add": ["a"], "remove": ["a"]}, ConfigError),
        ({"lines": (1, 2), "tag": ["a"]}, ConfigError),
        ({"lines": (0, 2), "add": ["a"]}, InvalidInput),
        ({"lines": (3, 2), "add": ["a"]}, InvalidInput),
        ({"lines": (2, 11), "add": ["a"]}, InvalidInput),
        ({"add": [""]}, InvalidInput),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], error: type[Exception], loaded: Bundle) -> None:
    with memory_of([(10, False)], loaded) as memory, pytest.raises(error):
        memory.label("plain-0", **options)
