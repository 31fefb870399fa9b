"""What GistNet and LensNet share: a validated config, a folder with config.json and
model.safetensors, a fingerprint."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megacontext.errors import ConfigError, CorruptCheckpoint, ModelMismatch, ModelNotFound
from megacontext.models.fingerprints import hash_net

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class NetConfig(Protocol):
    """A frozen dataclass that says for which base model a network was trained ("" while it is for
    none)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def base_fingerprint(self) -> str: ...


class PretrainedNet(nn.Module):
    """A network that is saved, loaded and named like a Hugging Face model.

    Subclasses set ``kind`` (written into config.json, so that one is never loaded as the other) and
    ``config_class``, and take the config as their only argument.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[Any]]

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self._config = config
        self._named: tuple[tuple[tuple[int, int], ...], str] | None = None

    @property
    def fingerprint(self) -> str:
        """32 hex digits over configuration and every weight; taken again after the weights have
        changed."""
        tensors = self.state_dict()
        state = tuple((t.data_ptr(), t._version) for t in self._tensors())
        if self._named is None or self._named[0] != state:
            self._named = (state, hash_net([self.kind, _facts(self._config)], tensors.items()))
        return self._named[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors. Each appears whole or not at all."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        facts = {"model_type": self.kind, **_facts(self._config)}
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as scratch:
            save_file(tensors, Path(scratch) / WEIGHTS_FILE, metadata={"format": "pt"})
            (Path(scratch) / CONFIG_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(Path(scratch) / name, target / name)
        return target

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, base_fingerprint: str | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Load from a folder, in eval mode. ModelNotFound, CorruptCheckpoint, or ModelMismatch when
        it was trained for another base than ``base_fingerprint`` (None: not checked)."""
        source = Path(folder)
        config = cls._read_config(source)
        if base_fingerprint is not None and config.base_fingerprint not in ("", base_fingerprint):
            raise ModelMismatch(
                f"{source} was trained for the base model {config.base_fingerprint[:12]}, not for {base_fingerprint[:12]}; "
                "use that base, or train one for this base"
            )
        net = cls(config)
        try:
            net.load_state_dict(load_file(source / WEIGHTS_FILE))
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{source} has no {WEIGHTS_FILE}; copy the folder again") from error
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CorruptCheckpoint(
                f"{source / WEIGHTS_FILE} cannot be read or does not fit its {CONFIG_FILE}: {error}"
            ) from error
        return net.to(device).eval()

    @classmethod
    def _read_config(cls, source: Path) -> Any:
        path = source / CONFIG_FILE
        if not path.is_file():
            raise ModelNotFound(f"{source} holds no {CONFIG_FILE}: pass a folder that {cls.__name__}.save_pretrained wrote")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            kind = facts.pop("model_type", None)
        except (ValueError, AttributeError, OSError) as error:
            raise CorruptCheckpoint(f"{path} is not a JSON object: {error}") from error
        if kind != cls.kind:
            raise ModelMismatch(f"{source} holds a model of type {kind!r}, not {cls.kind!r}")
        try:
            return cls.config_class(**facts)
        except (TypeError, ConfigError) as error:
            raise CorruptCheckpoint(f"{path} does not describe a {cls.__name__}: {error}") from error

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    def __getstate__(self) -> dict[str, Any]:
        # A copy has other tensors at other addresses: it takes its own fingerprint.
        return {**self.__dict__, "_named": None}


LATER = {"later": True}
"""Metadata of a field that a configuration got after networks had been saved."""


def _facts(config: NetConfig) -> dict[str, Any]:
    """The fields by name. Later ones only where they are set: networks from before keep the names they are known by."""
    facts = dataclasses.asdict(cast("Any", config))
    later = [field for field in dataclasses.fields(cast("Any", config)) if field.metadata.get("later")]
    for field in later:
        if facts[field.name] == field.default:
            del facts[field.name]
    return facts
