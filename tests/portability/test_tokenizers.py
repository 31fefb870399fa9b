"""What tokenizers of different kinds do to a text, and that a memory gives the text back whatever they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import megacontext
from megacontext.testing.tiny_models import byte_tokenizer, save_tiny

TEXTS = {
    "code": "def f(x):\n\treturn {'a': x ** 2}  # <eos>\n" * 12,
    "cjk": "日本語の文章と漢字。한국어 문장。\n" * 12,
    "emoji": "👩\u200d👩\u200d👧 → 🚀 e\u0301 \U0001f3f3\ufe0f\n" * 12,
    "control": "a\r\nb\x01c\x07\t\u2028d\n" * 12,
    "special": "<s><eos><pad></s><unk> <|endoftext|>\n" * 12,
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _marks_beginnings() -> Any:
    """Adds a beginning-of-text token to everything that it is not told to leave alone (as Llama 3's does)."""
    tokenizer = byte_tokenizer()
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<eos>", clean_up_tokenization_spaces=False
    )


def _byte_fallback() -> Any:
    """A vocabulary of a few letters; every other character falls back to its bytes, spaces are marked (as Llama 2's does)."""
    letters = ["▁", *"abcdefxre", "▁r", "re"]
    vocabulary = {symbol: i for i, symbol in enumerate([*BYTES, "<eos>", "<pad>", *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "r"), ("r", "e")], byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def _without_end() -> Any:
    """No end-of-text token and no padding at all."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, clean_up_tokenization_spaces=False)


def _lowercases() -> Any:
    """Loses case and what is no letter of its own: the text cannot be had back from the tokens."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2, "def": 3, "return": 4}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "byte_fallback": _byte_fallback,
    "lossy": _lowercases,
    "marks_beginnings": _marks_beginnings,
    "without_end": _without_end,
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> Path:
    tokenizer = KINDS[kind]()
    folder = save_tiny(tmp_path / "model", vocab_size=max(len(tokenizer), 16), eos_token_id=None, pad_token_id=None)
    for name in folder.glob("tokenizer*"):
        name.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_a_memory_gives_every_text_back(model: Path, tmp_path: Path) -> None:
    memory = megacontext.init(tmp_path / "memory.mc", model=model)
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    memory.add(*(tmp_path / f"{name}.txt" for name in TEXTS))
    given = [memory.text(document) for document in memory.snapshot().documents.live()]
    assert sorted(given) == sorted(TEXTS.values())


def test_nothing_in_a_text_or_prompt_becomes_a_control_token(model: Path, tmp_path: Path) -> None:
    memory = megacontext.init(tmp_path / "memory.mc", model=model)
    tokenizer = memory.bundle.tokenizer
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    with memory.session(budget=256) as session:
        session.append(TEXTS["special"])
        snapshot = session.snapshot
        ids = snapshot.tokens(0, snapshot.blocks).ravel().tolist()
    assert len(ids) >= 32
    assert not control & set(ids)
