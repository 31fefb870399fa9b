"""Loading a base model with typed errors, and nothing missing in silence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from megacontext.errors import CorruptCheckpoint, ModelNotFound, UnsupportedModel
from megacontext.models import hub


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(id_or_folder: str | Path, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, Any]:
    """The causal LM and its tokenizer. ModelNotFound, CorruptCheckpoint or UnsupportedModel."""
    name = os.fspath(id_or_folder)
    _check_exists(name)
    # What is cached is loaded without the hub where that cannot be reached.
    here = {"local_files_only": True} if not Path(name).is_dir() and not hub.reachable(name) else {}
    config = _load_config(name, here)
    wanted = dtype if dtype is not None else (torch.float32 if device.type == "cpu" else "auto")
    return _load_weights(name, config, wanted, device, here), _load_tokenizer(name, here)


def set_attention(model: Any, config: Any) -> None:
    """Choose the attention that takes our masks: sdpa, or eager where sdpa cannot (soft-capped
    scores, attention sinks)."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    wanted = "sdpa" if getattr(model, "_supports_sdpa", False) and not capped else "eager"
    if getattr(config, "_attn_implementation", None) != wanted:
        model.set_attn_implementation(wanted)


def _check_exists(name: str) -> None:
    path = Path(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.exists()
    if looks_local and not (path / "config.json").is_file():
        raise ModelNotFound(f"{name} is not a model folder: pass a folder that holds config.json, or a hub id")


def _load_config(name: str, here: dict[str, Any]) -> Any:
    local = Path(name).is_dir()
    try:
        return AutoConfig.from_pretrained(name, **here)
    except StrictDataclassError as error:
        raise CorruptCheckpoint(f"{name}/config.json holds an impossible value: {_first_line(error)}") from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"{name}: this version of transformers does not know the architecture: {_first_line(error)}"
        ) from error
    except OSError as error:
        if local:
            raise CorruptCheckpoint(f"{name}/config.json cannot be read: {_first_line(error)}") from error
        raise ModelNotFound(hub.not_here(name)) from error


def _load_weights(name: str, config: Any, dtype: Any, device: torch.device, here: dict[str, Any]) -> Any:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True, **here)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise ModelNotFound(hub.not_here(name)) from error
        raise CorruptCheckpoint(f"the weights of {name} cannot be read; fetch them again: {_first_line(error)}") from error
    except ValueError as error:
        raise UnsupportedModel(f"{name} is not a causal language model: {_first_line(error)}") from error
    # transformers fills what a checkpoint lacks with random numbers and only logs it.
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if absent:
        raise CorruptCheckpoint(f"the checkpoint {name} lacks {len(absent)} tensors, first {absent[0]}; fetch it again")
    return model.to(device)


def _load_tokenizer(name: str, here: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, **here)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"{name} holds a model but no tokenizer that can be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
