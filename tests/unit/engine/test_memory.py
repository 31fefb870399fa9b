from __future__ import annotations

from pathlib import Path

import pytest

import megacontext
from megacontext.engine.memory import Memory
from megacontext.errors import MemoryNotFound, ModelMismatch, UnknownReference
from megacontext.testing.tiny_bundle import save_tiny_bundle


def test_text_comes_back_as_it_was_added(memory: Memory) -> None:
    text = "naïve Ω 漢字\r\n\ttabs and  spaces  \n<|endoftext|> is text\n"
    memory.add(text=text, name="odd")
    assert memory.text(memory.find_document("text:odd")) == text


def test_status_counts_every_level(memory: Memory) -> None:
    status = memory.status()
    assert status.levels[1] == status.blocks
    assert status.levels[2] == status.blocks // 32
    assert status.tokens <= status.levels[0] == status.blocks * 32


def test_adding_the_same_again_costs_nothing_and_diff_sees_what_is_new(memory: Memory) -> None:
    before = memory.status()
    text = memory.text(memory.find_document("text:functions"))
    receipt = memory.add(text=text, name="functions")
    assert receipt.documents == 0 and receipt.unchanged == ("text:functions",)
    assert memory.status().blocks == before.blocks
    memory.add(text="x = 1\n", name="new")
    assert memory.diff(before.commit).added == ("text:new",)


def test_search_names_source_and_line(memory: Memory) -> None:
    memory.add(text="first line\nsecond line\nthe zebra quagga stands here\n", name="animals")
    hit = memory.search("zebra quagga")[0]
    assert hit.source == "text:animals"
    assert "quagga" in hit.text


def test_unknown_things_name_what_there_is(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(UnknownReference, match="text:functions"):
        memory.find_document("nothing.py")
    with pytest.raises(UnknownReference, match="no branch"):
        memory.snapshot("nonsense")
    with pytest.raises(MemoryNotFound, match="megacontext init"):
        megacontext.open(tmp_path / "missing", create=False)


def test_a_model_with_another_tokenizer_is_refused_before_anything_is_written(memory: Memory, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = save_tiny_bundle(tmp_path / "other")
    path = folder / "base" / "tokenizer.json"
    changed = Tokenizer.from_file(str(path))
    changed.add_tokens(["zebra"])
    PreTrainedTokenizerFast(tokenizer_object=changed, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder / "base")
    before = memory.status()
    with pytest.raises(ModelMismatch, match="another tokenizer"):
        Memory.open(memory.repository.root, model=folder).add(text="zebra")
    assert memory.status() == before
