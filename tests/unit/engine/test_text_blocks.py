"""Texts become blocks that give the text back, and know where each block starts in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megacontext.engine.text_blocks import TextBlocks, TextCutter
from megacontext.errors import ConfigError
from megacontext.testing.tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
TEXTS = st.text(st.sampled_from("ab\n\r é漢🙂\t<eos>"), min_size=1, max_size=300)


def joined(parts: list[TextBlocks]) -> TextBlocks:
    arrays = [np.concatenate([part[at] for part in parts]) for at in range(4)]
    return TextBlocks(*arrays, parts[-1].chars_done, parts[-1].exact)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, piece=st.integers(1, 200))
def test_blocks_give_the_text_back_and_know_where_they_start(text: str, piece: int) -> None:
    blocks = joined(list(TextCutter(TOKENIZER, piece_chars=piece).cut(text)))
    assert (
        blocks.ids.dtype == np.uint32 and blocks.fill.dtype == np.uint8 and blocks.chars.dtype == blocks.lines.dtype == np.int64
    )
    real = blocks.ids[np.arange(32) < blocks.fill[:, None]]
    assert real[-1] == EOS and TOKENIZER.decode(real[:-1].tolist()) == text
    assert blocks.exact and blocks.chars_done == len(text)
    assert np.all(blocks.fill[:-1] == 32) and 1 <= blocks.fill[-1] <= 32
    assert set(blocks.ids[-1, blocks.fill[-1] :].tolist()) <= {EOS}
    # One token a byte: the byte that a block starts with tells the character.
    offsets = np.cumsum([0, *(len(c.encode()) for c in text)])
    expected = np.minimum(np.searchsorted(offsets, np.arange(len(blocks.ids)) * 32, side="right") - 1, len(text))
    np.testing.assert_array_equal(blocks.chars, expected)
    np.testing.assert_array_equal(blocks.lines, [text.count("\n", 0, char) + 1 for char in expected])


@settings(max_examples=30, deadline=None)
@given(text=TEXTS, piece=st.integers(1, 200))
def test_pieces_make_no_difference(text: str, piece: int) -> None:
    once = joined(list(TextCutter(TOKENIZER).cut(text)))
    pieces = joined(list(TextCutter(TOKENIZER, piece_chars=piece).cut(text)))
    for a, b in zip(once, pieces, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pieces_end_before_line_breaks() -> None:
    text = "".join(f"word{n};\nname{n}\n" for n in range(400))
    parts = list(TextCutter(TOKENIZER, piece_chars=1000).cut(text))
    assert len(parts) > 3
    for part in parts[:-1]:
        assert text[part.chars_done] == "\n" and text[part.chars_done - 1].isalnum()


def wordy_tokenizer() -> PreTrainedTokenizerFast:
    """Joins letters within words, as byte-level BPE does: a cut within one gives other tokens."""
    letters = [chr(n) for n in range(33, 127)]
    core = Tokenizer(
        models.BPE(
            {token: at for at, token in enumerate([*letters, "Ġ", "Ċ", "ab", "Ġab", "abab"])},
            [("a", "b"), ("Ġ", "ab"), ("ab", "ab")],
        )
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.sampled_from(["ab", "abab", "b", "a.b", "ab1"]), min_size=20, max_size=80), piece=st.integers(20, 60))
def test_a_long_line_is_cut_where_the_tokens_are_those_of_the_whole(words: list[str], piece: int) -> None:
    tokenizer, text = wordy_tokenizer(), " ".join(words)
    parts = list(TextCutter(tokenizer, piece_chars=piece).cut(text))
    assert len(parts) >= len(text) // piece
    blocks = joined(parts)
    np.testing.assert_array_equal(blocks.ids, joined(list(TextCutter(tokenizer).cut(text))).ids)
    assert blocks.exact and all(part.chars_done == len(text) or text[part.chars_done] == " " for part in parts)


@pytest.mark.parametrize("text", ["ab" * 500, "abab" * 300 + "b"])
def test_a_line_without_a_place_to_cut_comes_back_all_the_same(text: str) -> None:
    tokenizer = wordy_tokenizer()
    parts = list(TextCutter(tokenizer, piece_chars=99).cut(text))
    assert [part.chars_done for part in parts[:-1]] == list(range(99, len(text), 99))
    blocks = joined(parts)
    assert blocks.exact and tokenizer.decode(blocks.ids[np.arange(32) < blocks.fill[:, None]].tolist()) == text


def test_special_tokens_in_a_text_are_text() -> None:
    (blocks,) = TextCutter(TOKENIZER).cut("a<eos><pad>b")
    assert blocks.ids[0, : blocks.fill[0]].tolist().count(EOS) == 1 and blocks.exact


def test_part_of_blocks() -> None:
    (blocks,) = TextCutter(TOKENIZER).cut("x" * 100)
    part = blocks.part(1, 3)
    assert part.chars.tolist() == [32, 64] and part.chars_done == 96
    assert blocks.part(2, 4).chars_done == 100


def test_tokenizers_that_lose_something_say_so() -> None:
    core = Tokenizer(models.WordLevel({"[unk]": 0, "a": 1, "b": 2}, unk_token="[unk]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[unk]")
    (blocks,) = TextCutter(lossy).cut("a B\n c")
    assert not blocks.exact
    # No end-of-text token: none is added.
    assert blocks.fill.tolist() == [3] and blocks.ids[0, :3].tolist() == [1, 2, 0]
    (blocks,) = TextCutter(lossy).cut("a")
    assert blocks.exact
    (nothing,) = TextCutter(lossy).cut(" \n ")
    assert len(nothing.ids) == 0 and nothing.chars_done == 3


def test_cuts_are_inexact_where_the_tokenizer_marks_beginnings() -> None:
    core = Tokenizer(
        models.BPE({letter: at for at, letter in enumerate("▁abc\n<>/0xEA")}, [], byte_fallback=False, unk_token="x")
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    marking = PreTrainedTokenizerFast(tokenizer_object=core)
    assert [part.exact for part in TextCutter(marking).cut("a b c")] == [True]
    assert not list(TextCutter(marking, piece_chars=2).cut("a b c"))[-1].exact


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError):
        TextCutter(TOKENIZER, piece_chars=0)
