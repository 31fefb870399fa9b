"""Gists of several GistNets over one memory."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.events import BlocksRegisted, Committed, Event, LayersLeftBehind, RegistStarted
from megacontext.engine.memory import Memory
from megacontext.engine.regist import RegistConfig, regist
from megacontext.engine.session import SessionConfig
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import ConfigError, InvalidInput, LayerBehind, ModelMismatch, UnknownReference
from megacontext.storage import Repository
from megacontext.testing.content import content_of
from megacontext.testing.killing import in_child, kill_after
from megacontext.testing.tiny_bundle import save_tiny_bundle

TEXTS = [f"def part_{at}(a):\n    return a * {at}\n\n" * 12 for at in range(6)]
SMALL = RegistConfig(piece_blocks=7, commit_blocks=20)


pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two models with one tokenizer: one reads gists as embeddings, the other as keys and values."""
    folder = tmp_path_factory.mktemp("bundles")
    return load_bundle(save_tiny_bundle(folder / "a")), load_bundle(
        save_tiny_bundle(folder / "b", "qwen3", seed=1, key_value=True)
    )


def memory_of(path: Path, bundle: Bundle, texts: list[str], **shape: Any) -> Memory:
    """A memory that was written with one model."""
    fingerprint, files = bundle.base.tokenizer_fingerprint, tokenizer_files(bundle.tokenizer)
    memory = Memory(Repository.create(path, tokenizer=fingerprint, model=bundle.name, tokenizer_files=files, **shape), bundle)
    for at, text in enumerate(texts):
        memory.add(text=text, name=str(at))
    return memory


def gists_of(memory: Memory, bundle: Bundle) -> dict[str, str]:
    """Digests of the gists of one layer, and its root."""
    assert bundle.gists is not None
    name = bundle.gists.fingerprint
    content = content_of(memory.snapshot())
    return {"root": content["layers"][name]} | {key: value for key, value in content["gists"].items() if key.startswith(name)}


@pytest.mark.parametrize("swap", [False, True])
def test_a_layer_laid_later_is_that_of_a_memory_written_with_it(
    tmp_path: Path, bundles: tuple[Bundle, Bundle], swap: bool
) -> None:
    """Bit for bit, for embedded and for key/value gists; both then lie side by side, and each model reads its own."""
    first, second = reversed(bundles) if swap else bundles
    memory = memory_of(tmp_path / "m.mc", first, TEXTS, segment_blocks=32)
    fresh = memory_of(tmp_path / "fresh.mc", second, TEXTS, segment_blocks=32)
    before, tokens = gists_of(memory, first), memory.repository.commit().tokens
    other = Memory(memory.repository, second)
    with pytest.raises(LayerBehind, match=r"another GistNet.*megacontext regist --model"):
        other.session()
    receipt = other.regist(author="me")
    blocks = memory.snapshot().blocks
    assert (receipt.blocks, receipt.made, receipt.commit) == (blocks, blocks, memory.repository.resolve())
    assert gists_of(other, second) == gists_of(fresh, second)
    assert gists_of(memory, first) == before
    assert memory.repository.commit().tokens == tokens
    assert [(layer.blocks, layer.current) for layer in memory.layers()] == [(blocks, True)] * 2
    for each in (memory, other):
        with each.session(config=SessionConfig(budget=192, recent=32)) as session:
            session.append("def part_3(")
            session.refocus(unlimited=True)
            assert session.window.lod.max() > 0 and session.logits().isfinite().all()
    assert memory.fsck().clean
    again = other.regist()
    assert (again.made, again.commit) == (0, receipt.commit)


def test_writing_with_one_leaves_the_other_behind_and_says_so(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    first, second = bundles
    memory = memory_of(tmp_path / "m.mc", first, TEXTS[:3])
    other = Memory(memory.repository, second)
    other.regist()
    heard: list[Event] = []
    for at, text in enumerate(TEXTS[3:], 3):
        memory.add(text=text, name=str(at), listener=heard.append)
    (*_, told) = [event for event in heard if isinstance(event, LayersLeftBehind)]
    (lagging,) = told.layers
    assert second.gists is not None and lagging.fingerprint == second.gists.fingerprint and lagging.behind > 0
    with pytest.raises(LayerBehind, match=rf"cover {lagging.blocks} of {lagging.blocks + lagging.behind} blocks"):
        Memory(memory.repository, second).add(text="more")
    assert Memory(memory.repository, second).regist().made == lagging.behind
    assert gists_of(memory, second) == gists_of(memory_of(tmp_path / "fresh.mc", second, TEXTS), second)
    heard.clear()
    with memory.session(name="chat", listener=heard.append) as session:
        session.append("x" * 100)
    assert [event.layers[0].fingerprint for event in heard if isinstance(event, LayersLeftBehind)] == [lagging.fingerprint]
    with pytest.raises(LayerBehind, match="--branch sessions/chat"):
        Memory(memory.repository, second).session(name="chat")
    Memory(memory.repository, second).regist(branch="sessions/chat")
    with Memory(memory.repository, second).session(name="chat") as session:
        assert session.window.timeline.blocks > memory.snapshot().blocks


def test_what_died_leaves_the_other_layer_stale_until_regist(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    """What died must not live on in the gists of the model that was not there."""
    first, second = bundles
    long = "alpha beta gamma delta " * 400
    memory = memory_of(tmp_path / "m.mc", first, [long, TEXTS[0], long])
    Memory(memory.repository, second).regist()
    memory.add(text=TEXTS[1], name="0")
    assert memory.snapshot().timeline().dead
    assert [layer.stale for layer in memory.layers() if not layer.current] == [True]
    with pytest.raises(LayerBehind):
        Memory(memory.repository, second).session()
    Memory(memory.repository, second).regist()
    fresh = memory_of(tmp_path / "fresh.mc", second, [long, TEXTS[0], long])
    fresh.add(text=TEXTS[1], name="0")
    assert gists_of(memory, second) == gists_of(fresh, second)


def test_interrupted_anywhere_it_goes_on_where_it_was(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    first, second = bundles
    assert second.gists is not None
    memory = memory_of(tmp_path / "m.mc", first, TEXTS, segment_blocks=32)
    total = memory.snapshot().blocks
    heard: list[Event] = []

    def stop(event: Event) -> None:
        heard.append(event)
        if isinstance(event, BlocksRegisted) and event.covered >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regist(memory.repository, second.base, second.gists, config=SMALL, listener=stop)
    assert [event.blocks for event in heard if isinstance(event, Committed)] == [21, 42]
    assert memory.snapshot().layers[second.gists.fingerprint] == 56, "what was made is kept"
    heard.clear()
    receipt = regist(memory.repository, second.base, second.gists, model="second", config=SMALL, listener=heard.append)
    assert isinstance(heard[0], RegistStarted) and (heard[0].covered, heard[0].blocks) == (56, total)
    assert receipt.made == total - 56
    assert gists_of(memory, second) == gists_of(memory_of(tmp_path / "f.mc", second, TEXTS, segment_blocks=32), second)
    messages = [commit.message for _, commit in memory.log()]
    assert messages[0] == f"Regist with {second.gists.fingerprint[:12]} of second" and "56 of" in messages[2]


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.long)])
def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path, bundles: tuple[Bundle, Bundle], kills: int) -> None:
    first, second = bundles
    assert second.gists is not None
    encoder = second.gists
    fresh = gists_of(memory_of(tmp_path / "fresh.mc", second, TEXTS, segment_blocks=32), second)
    dice, settled = random.Random(3), 0
    memory = memory_of(tmp_path / "m.mc", first, TEXTS, segment_blocks=32)
    tokens = memory.repository.commit().tokens

    def die() -> None:
        after = dice.random() * 0.05

        def tell(event: Event) -> None:
            if isinstance(event, RegistStarted):
                kill_after(after)

        regist(memory.repository, second.base, encoder, config=SMALL, listener=tell)

    ends = []
    for _ in range(kills):
        dice.random()
        ends.append(in_child(die))
        covered = memory.snapshot().layers.get(encoder.fingerprint, 0)
        assert covered >= settled, "what was committed stays"
        settled = covered
        assert memory.repository.commit().tokens == tokens and memory.fsck().clean
        if settled == memory.snapshot().blocks:
            memory.remove_layer(encoder.fingerprint)
            settled = 0
    assert -signal.SIGPROF in ends
    regist(memory.repository, second.base, encoder, config=SMALL)
    assert gists_of(memory, second) == fresh


def test_a_layer_is_dropped_in_a_new_commit(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    first, second = bundles
    assert first.gists is not None and second.gists is not None
    memory = memory_of(tmp_path / "m.mc", first, TEXTS[:2])
    other = Memory(memory.repository, second)
    before = other.regist().commit
    with pytest.raises(UnknownReference, match="no gist layer 'abc'"):
        other.remove_layer("abc")
    name, commit = other.remove_layer(first.gists.fingerprint[:8], author="me")
    assert name == first.gists.fingerprint and commit == memory.repository.resolve()
    assert set(memory.snapshot().layers) == {second.gists.fingerprint}
    assert set(memory.snapshot(before).layers) == {first.gists.fingerprint, name} | {second.gists.fingerprint}
    assert memory.repository.commit().tokens == memory.repository.commit(before).tokens
    with pytest.raises(LayerBehind, match="no gists of"):
        Memory(memory.repository, first).session()
    other.add(text=TEXTS[2], name="2")
    Memory(memory.repository, first).regist()
    assert gists_of(memory, first) == gists_of(memory_of(tmp_path / "fresh.mc", first, TEXTS[:3]), first)
    assert memory.fsck().clean


def test_dropping_the_layer_of_an_unfinished_document_drops_that_too(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    """Its gists lie in the journal, which could not be read without the layer."""
    first, second = bundles
    assert first.gists is not None
    memory = memory_of(tmp_path / "m.mc", first, TEXTS[:1])
    Memory(memory.repository, second).regist()

    def stop(event: Event) -> None:
        if type(event).__name__ == "BlocksIngested":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.add(text=TEXTS[1] * 100, name="big", listener=stop)
    memory.remove_layer(first.gists.fingerprint)
    assert len(memory.snapshot().documents) == 1 and memory.fsck().clean
    Memory(memory.repository, second).add(text=TEXTS[1], name="big")
    assert memory.text(memory.find_document("text:big")) == TEXTS[1]


def test_models_without_a_gistnet_are_told_what_to_do(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> None:
    memory = memory_of(tmp_path / "m.mc", bundles[0], TEXTS[:1])
    bare = Memory(memory.repository, Bundle(name="bare", base=bundles[0].base))
    with pytest.raises(ModelMismatch, match="regist --remove"):
        bare.session()
    with pytest.raises(ConfigError, match="train gist"):
        bare.regist()
    with pytest.raises(InvalidInput, match="positive"):
        RegistConfig(commit_blocks=0)
    assert bundles[0].gists is not None
    memory.remove_layer(bundles[0].gists.fingerprint)
    bare.add(text=TEXTS[1], name="1")
    assert not memory.layers()


TURN = st.tuples(st.sampled_from(["first", "second"]), st.integers(0, 2), st.integers(0, 5) | st.none())


@given(st.lists(TURN, min_size=2, max_size=6))
@settings(max_examples=4)
def test_models_that_take_turns_have_the_gists_they_would_have_alone(
    tmp_path_factory: pytest.TempPathFactory, bundles: tuple[Bundle, Bundle], turns: list[tuple[str, int, int | None]]
) -> None:
    """Whatever is added, changed and removed with whichever model, after regist both layers are as if it had been alone."""
    folder = tmp_path_factory.mktemp("turns")
    first, second = bundles
    start = [*TEXTS[:3], "more " * 200]
    shared = memory_of(folder / "shared.mc", first, start, segment_blocks=32)
    alone = [memory_of(folder / f"{at}.mc", each, start, segment_blocks=32) for at, each in enumerate(bundles)]
    for who, source, text in turns:
        writer = Memory(shared.repository, first if who == "first" else second)
        writer.regist()
        for memory in (writer, *alone):
            there = any(record.source == f"text:{source}" for record in memory.snapshot().documents.live())
            if text is not None:
                memory.add(text=TEXTS[text] * (text + 1), name=str(source))
            elif there:
                memory.remove(f"text:{source}")
    for bundle, own in zip(bundles, alone, strict=True):
        Memory(shared.repository, bundle).regist()
        assert gists_of(shared, bundle) == gists_of(own, bundle)
    assert shared.fsck().clean
