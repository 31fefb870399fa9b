"""What is learned, and the base model it works with: the adapter, GistNet, LensNet, position strategies.

Names are resolved when first used: ``positions`` needs no tensor library, the rest loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megacontext.models.base_lm import BaseLM as BaseLM
    from megacontext.models.base_lm import BaseOutput as BaseOutput
    from megacontext.models.cache import KeyValueCache as KeyValueCache
    from megacontext.models.gist_baselines import MeanPoolGist as MeanPoolGist
    from megacontext.models.gist_baselines import RandomGist as RandomGist
    from megacontext.models.gistnet import GistEncoder as GistEncoder
    from megacontext.models.gistnet import GistNet as GistNet
    from megacontext.models.gistnet import GistNetConfig as GistNetConfig
    from megacontext.models.lensnet import LensNet as LensNet
    from megacontext.models.lensnet import LensNetConfig as LensNetConfig
    from megacontext.models.positions import PositionStrategy as PositionStrategy

_LAZY = {
    "BaseLM": "base_lm",
    "BaseOutput": "base_lm",
    "GistEncoder": "gistnet",
    "GistNet": "gistnet",
    "GistNetConfig": "gistnet",
    "KeyValueCache": "cache",
    "LensNet": "lensnet",
    "LensNetConfig": "lensnet",
    "MeanPoolGist": "gist_baselines",
    "PositionStrategy": "positions",
    "RandomGist": "gist_baselines",
}

__all__ = [
    "BaseLM",
    "BaseOutput",
    "GistEncoder",
    "GistNet",
    "GistNetConfig",
    "KeyValueCache",
    "LensNet",
    "LensNetConfig",
    "MeanPoolGist",
    "PositionStrategy",
    "RandomGist",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
