"""What the processes of `test_ingest_crash` run: adding one file with gists of all levels, telling how far they are."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megacontext.engine.events import BlocksIngested, DocumentStarted, Event
from megacontext.engine.ingest import IngestConfig, ingest
from megacontext.engine.sources import find_sources
from megacontext.models.base_lm import BaseLM
from megacontext.models.gist_baselines import MeanPoolGist
from megacontext.storage import Repository
from megacontext.testing.tiny_models import WIDTH, tiny_model

VOCABULARY = 4000


def train_tokenizer(path: Path, text: str) -> None:
    """A byte-level BPE tokenizer, so that a megabyte is not a million tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([text], trainer)
    core.save(str(path))


def load(tokenizer: Path) -> tuple[BaseLM, MeanPoolGist]:
    """The same base and encoder in every process. (With a GistNet, this would take minutes; see the unit tests.)"""
    torch.set_num_threads(1)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<eos>", clean_up_tokenization_spaces=False)
    base = BaseLM.wrap(tiny_model("llama", vocab_size=VOCABULARY), fast)
    return base, MeanPoolGist(WIDTH, 0.2)


def add(memory: Path, tokenizer: Path, file: Path, log: Path, batch: int, die_at: int = -1, die_after: float = 0.0) -> None:
    """Adds a file to a memory, `batch` blocks together. `log` gets a line for each thing that happened: `resumed N`, `blocks N`
    in all so far, and the processor time of it all. The system kills the process once it has spent `die_after` more seconds of
    processor time after block `die_at`: in the middle of whatever it does then, and without asking it."""
    base, encoder = load(tokenizer)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    total, started, armed = 0, time.process_time(), die_at < 0

    def tell(event: Event) -> None:
        nonlocal total, armed
        if isinstance(event, DocumentStarted):
            total = event.resumed
            os.write(descriptor, f"resumed {total}\n".encode())
        elif isinstance(event, BlocksIngested):
            total += event.blocks
            os.write(descriptor, f"blocks {total}\n".encode())
        if not armed and total >= die_at:
            armed = True
            # Nobody handles this signal, so it ends the process like SIGKILL; and it counts time spent, not passed, so
            # that a busy machine makes no difference.
            signal.setitimer(signal.ITIMER_PROF, die_after)

    ingest(Repository.open(memory), base, encoder, find_sources([file]), config=IngestConfig(batch_blocks=batch), listener=tell)
    os.write(descriptor, f"seconds {time.process_time() - started}\n".encode())
    os.close(descriptor)
