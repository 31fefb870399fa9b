from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from storage_driver import SPEC, Gister, add, check_layer, create, roots, say

from megacontext.errors import InvalidInput
from megacontext.storage import LayerSpec, LayerWriter


def extend(writer: LayerWriter, gister: Gister, blocks: int) -> None:
    start = writer.blocks
    writer.append(blocks, gister.add(writer.tokens.tokens(start, start + blocks)))


def test_a_layer_added_later_is_the_layer_written_along(tmp_path: Path) -> None:
    """In pieces of any size, over several writers, with commits anywhere."""
    along, later = create(tmp_path / "along"), create(tmp_path / "later")
    gister = Gister()
    with along.writer(layer=SPEC) as writer:
        add(writer, "a", 150, gister)
        writer.commit()
    with later.writer() as writer:
        add(writer, "a", 150)
        writer.commit()
    tokens, model = later.commit().tokens, Gister()
    with later.add_layer(SPEC) as writer:
        assert (writer.blocks, writer.segment_tokens) == (0, 1024)
        extend(writer, model, 32)
        extend(writer, model, 10)
        writer.commit("first part")
        extend(writer, model, 1)
    assert later.snapshot().layers == {SPEC.fingerprint: 42}
    check_layer(later.snapshot(), model)
    model = Gister()
    with later.add_layer(SPEC) as writer:
        assert writer.blocks == 42, "what was not committed is not there"
        model.add(writer.tokens.tokens(0, 42))
        extend(writer, model, 108)
        writer.commit("the rest")
        assert writer.commit("nothing new") == later.resolve()
    assert later.commit().tokens == tokens
    assert roots(later) == roots(along)
    check_layer(later.snapshot(), gister)
    assert later.fsck().clean


def test_the_journal_is_settled_first_and_an_unfinished_document_kept(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        add(writer, "a", 5)
        writer.begin_document(source="b", text_hash="h")
        writer.append_blocks(np.ones((3, 32), np.uint32))
    gister = Gister()
    with repository.add_layer(SPEC) as layer:
        extend(layer, gister, 5)
        layer.commit()
    with repository.writer() as writer:
        assert writer.begin_document(source="b", text_hash="h").blocks == 3
        writer.end_document()
    assert repository.snapshot().blocks == 8
    check_layer(repository.snapshot(), gister)


def test_an_open_conversation_goes_on_under_a_new_layer(tmp_path: Path) -> None:
    repository, gister = create(tmp_path / "m"), Gister()
    with repository.writer() as writer:
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(70, dtype=np.uint32))
    with repository.add_layer(SPEC) as layer:
        extend(layer, gister, 2)
        layer.commit()
    with repository.writer(layer=SPEC) as writer:
        assert writer.begin_document(source="chat", open=True).tokens == 70
        say(writer, np.arange(70, 2000, dtype=np.uint32), gister)
        check_layer(writer.snapshot(), gister)
        writer.commit()
    check_layer(repository.snapshot(), gister)
    assert repository.fsck().clean


def test_a_layer_cannot_pass_the_tokens_or_change_its_shape(tmp_path: Path) -> None:
    repository, gister = create(tmp_path / "m"), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 2, gister)
        writer.commit()
    with repository.add_layer(SPEC) as layer, pytest.raises(InvalidInput, match="2 of them have gists already"):
        layer.append(1, None)
    wider = dataclasses.replace(SPEC, width=8)
    for take in (repository.add_layer, lambda spec: repository.writer(layer=spec)):
        with pytest.raises(InvalidInput, match="width=4"):
            take(wider)
    repository.writer().close()
    with pytest.raises(InvalidInput, match="positive"):
        LayerSpec(fingerprint="x", vectors=0, width=1)
