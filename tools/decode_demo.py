"""Streams a short prompt through a base model, and proves that a window of raw tokens gives the base's own logits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

import torch

from megacontext.engine.bundle import load_bundle
from megacontext.engine.sampling import Sampler, SamplingConfig
from megacontext.engine.text_stream import TextStream
from megacontext.errors import ConfigError, MegaContextError
from megacontext.models.base_lm import BaseLM, identity_gap
from megacontext.training.config import load_config
from megacontext.training.frozen import Frozen

# Two ways to compute the same logits differ by rounding: of this share of the largest logit at most.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class DecodeDemoConfig(Frozen):
    """``model``: bundled, a folder or a hub id. ``dtype``: none means float32 on CPU, else the checkpoint's own."""

    model: str = "bundled"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    prompt: str = "def main("
    max_new_tokens: int = 32
    top: int = 5


def run(config: DecodeDemoConfig) -> bool:
    """Show logits and a short continuation; returns whether the logits are the base's own."""
    name = config.model
    base = BaseLM.from_pretrained(name, dtype=getattr(torch, config.dtype)) if config.dtype else load_bundle(name).base
    ids = torch.tensor([base.tokenizer(config.prompt, add_special_tokens=False)["input_ids"]], dtype=torch.int64)
    if not ids.numel():
        raise ConfigError("the prompt has no tokens: write something into prompt")
    print(f"{base.family}, width {base.width}, {base.vocab_size:,} tokens, {base.dtype}".replace("torch.", ""))
    cache, stream, sampler = base.new_cache(), TextStream(base.tokenizer), Sampler(SamplingConfig())
    with torch.no_grad():
        logits = base.forward(base.embed(ids), torch.arange(ids.shape[1])[None].to(base.device), cache=cache).logits[0]
        gap, largest = identity_gap(base, ids), float(logits.abs().max())
        for probability, token in zip(*(row.tolist() for row in logits[-1].softmax(-1).topk(config.top)), strict=True):
            print(f"  {probability:7.2%}  {base.tokenizer.decode([token])!r}")
        print(config.prompt, end="")
        for _ in range(min(config.max_new_tokens, base.context_length - ids.shape[1])):
            token = sampler(logits[-1], ids[0])
            if token == base.tokenizer.eos_token_id:
                break
            print(stream.push(token), end="", flush=True)
            place = torch.tensor([[cache.length]], device=base.device)
            logits = base.forward(base.embed(torch.tensor([[token]])), place, cache=cache).logits[0]
    print(stream.flush())
    same = gap <= TOLERANCE[base.dtype] * max(1.0, largest)
    print(f"largest difference from the base's own logits: {gap:.2g} of {largest:.3g}: {'the same' if same else 'DIFFERENT'}")
    return same


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 where the logits differ, or 2 where the input cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m tools.decode_demo", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML, such as configs/decode_demo.yaml")
    try:
        return 0 if run(load_config(DecodeDemoConfig, parser.parse_args(argv).config)) else 1
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
