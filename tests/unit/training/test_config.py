"""Configurations: those that ship load; mistakes are named with file and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError
from megacontext.training.config import (
    BaseConfig,
    BaseShape,
    GistConfig,
    LensConfig,
    NativeConfig,
    TokenizerConfig,
    load_config,
)

CONFIGS = Path(__file__).parents[3] / "configs"
KINDS: dict[str, type[BaseModel]] = {
    "tokenizer": TokenizerConfig,
    "base": BaseConfig,
    "native": NativeConfig,
    "gist": GistConfig,
    "lens": LensConfig,
}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


GOOD = "output: runs/x\ndataset: data/x\ntokenizer: runs/t\nsteps: 10\n"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_configurations_that_ship_are_valid(name: str) -> None:
    load_config(KINDS[name], CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "gpu").glob("*.yaml")))
def test_those_for_a_gpu_are_legs_in_bf16(name: str) -> None:
    config = load_config(KINDS[name], CONFIGS / "gpu" / f"{name}.yaml")
    assert isinstance(config, BaseConfig | NativeConfig | GistConfig)
    assert (config.device, config.precision, config.stop_after_s) == ("cuda", "bf16", 480)
    base, small = (load_config(BaseConfig, CONFIGS / f"{folder}base.yaml") for folder in ("gpu/", ""))
    assert base.shape.width > small.shape.width and base.shape.layers > small.shape.layers
    windows = config.windows
    assert windows.far + windows.tail + windows.horizon <= base.shape.context_length
    if isinstance(config, NativeConfig):
        assert config.init == base.output / "model" and config.mix.blocks * BLOCK <= base.shape.context_length


def test_every_arm_has_a_configuration_for_a_gpu() -> None:
    assert {path.stem for path in (CONFIGS / "gpu").iterdir()} == {"base", "native", "gist"}


def test_overrides_win_over_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD + "seed: 1\nclip: 2.0\n")
    monkeypatch.setenv("MEGACONTEXT_SEED", "2")
    monkeypatch.setenv("MEGACONTEXT_STEPS", "20")
    config = load_config(BaseConfig, path, {"steps": 30})
    assert (config.clip, config.seed, config.steps) == (2.0, 2, 30)


def test_overrides_reach_inner_fields(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "shape: {layers: 3}\n")
    shape = load_config(BaseConfig, path, {"shape.width": 64, "shape.head_dim": 16}).shape
    assert (shape.layers, shape.width, shape.head_dim) == (3, 64, 16)
    with pytest.raises(ConfigError, match=r"shape\.widht"):
        load_config(BaseConfig, path, {"shape.widht": 64})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD + "stepz: 3\n", "stepz"),
        (GOOD.replace("10", "-1"), "steps"),
        (GOOD.replace("steps: 10", ""), "steps"),
        (GOOD + "shape: {widht: 3}\n", r"shape\.widht"),
        ("- a\n- b\n", "must hold a mapping of fields, not a list"),
        ("a: [1\n", "not valid YAML"),
        ("", "output"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(BaseConfig, write(tmp_path, text))
    assert "run.yaml" in str(caught.value)


def test_a_missing_file_says_where_examples_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/"):
        load_config(BaseConfig, tmp_path / "absent.yaml")


def test_configurations_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(BaseConfig, write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 11


@pytest.mark.parametrize(("width", "expected"), [(192, 512), (128, 384), (96, 256)])
def test_the_mlp_follows_the_width(width: int, expected: int) -> None:
    assert BaseShape(width=width).intermediate == expected


@pytest.mark.parametrize("shape", ["width: 200", "head_dim: 12", "width: 64", "layers: 1"])
def test_shapes_without_room_for_the_circuit_are_refused(tmp_path: Path, shape: str) -> None:
    with pytest.raises(ConfigError, match=r"circuit|multiple"):
        load_config(BaseConfig, write(tmp_path, GOOD + f"shape: {{{shape}}}\n"))


def test_native_training_starts_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either init"):
        load_config(NativeConfig, write(tmp_path, "output: a\ndataset: b\nsteps: 3\n"))
