"""Capacity: the bound is scored as the benchmark scores, never looks at the horizon where it must not, and is reproducible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from megacontext.cli.main import app
from megacontext.engine.bundle import Bundle
from megacontext.errors import ConfigError
from megacontext.evaluation import arms
from megacontext.evaluation.gists import GistBank
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.measured import measure
from megacontext.evaluation.suite import Source
from megacontext.models import BaseLM, GistEncoder, MeanPoolGist
from megacontext.models.positions import window_ranks
from megacontext.testing.tiny_bundle import save_tiny_bundle, tiny_gistnet, tiny_kv_gistnet
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.capacity import CapacityConfig, optimise, replayed, run, the_answer, window_nll
from megacontext.training.free_gists import bounded, space_of
from megacontext.training.progress import counted

FAR, TAIL, H = 128, 64, 32
CONFIG = CapacityConfig(items=4, far=FAR, tail=TAIL, horizon=H, steps=12, batch=4, cue=4)


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base()


def histories(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 200, size=400) for _ in range(count)]


@pytest.fixture(scope="module")
def items() -> Items:
    return draw_items(histories(), far=FAR, tail=TAIL, horizon=H, count=4, seed=0)


def vectors(base: BaseLM, g: int = 1) -> np.ndarray:
    drawn = torch.randn(4, FAR // 32, g, base.width, generator=torch.Generator().manual_seed(0))
    return (drawn * base.embedding_rms * 0.5).half().numpy()


def pool(base: BaseLM) -> GistEncoder:
    return MeanPoolGist(base.width, base.embedding_rms)


@pytest.mark.parametrize("g", [1, 3])
def test_a_window_is_scored_exactly_as_the_benchmark_does(base: BaseLM, items: Items, g: int) -> None:
    gists = vectors(base, g)
    found = measure(base, None, items, {"own": arms.with_gists(lambda item: gists[item.row])})
    check_scored(base, pool(base), items, gists, found.nll["own"])


@pytest.mark.parametrize("g", [1, 2])
def test_so_is_one_with_key_value_gists(base: BaseLM, items: Items, g: int) -> None:
    net = tiny_kv_gistnet(base, vectors=g)
    bank = GistBank(items, base, net)
    found = measure(base, net, items, {"own": arms.gist}, bank=bank)
    gists = np.stack([bank(row)[: FAR // 32] for row in range(len(items))])
    check_scored(base, net, items, gists, found.nll["own"])


def check_scored(base: BaseLM, encoder: GistEncoder, items: Items, gists: np.ndarray, nll: np.ndarray) -> None:
    following = the_answer(items)(np.arange(4), 0)
    assert following.first == TAIL and following.ids.shape == (4, TAIL + H)
    made = torch.from_numpy(gists.astype(np.float32))
    own = window_nll(space_of(base, encoder, made), made, following, window_ranks(encoder), base)
    np.testing.assert_allclose(own.detach().numpy(), nll, atol=1e-4)


def test_keys_and_values_that_are_optimised_stay_as_small_as_true_ones(base: BaseLM, items: Items) -> None:
    net = tiny_kv_gistnet(base)
    bank = GistBank(items, base, net)
    start = np.stack([bank(row)[: FAR // 32] for row in range(len(items))])
    found, curve = optimise(base, net, start, the_answer(items), CONFIG)
    assert curve[-1] < curve[0] - 0.02
    limits = [part.square().mean(-1).amax() for part in net.layout.unpack(torch.from_numpy(start).float())[:2]]
    sizes = [part.square().mean(-1).amax() for part in net.layout.unpack(torch.from_numpy(found).float())[:2]]
    assert all(size <= limit * 1.01 for size, limit in zip(sizes, limits, strict=True))


def test_the_fair_bound_never_sees_the_horizon(items: Items) -> None:
    altered = items.ids.copy()
    altered[:, items.context :] = 255
    draw, blind = replayed(items, CONFIG), replayed(replace(items, ids=altered), CONFIG)
    kinds = set()
    for step in range(20):
        one, two = (each(np.arange(4), step) for each in (draw, blind))
        np.testing.assert_array_equal(one.ids, two.ids)
        assert one.ids.shape == (4 * CONFIG.replays, TAIL) and one.first == TAIL - H + CONFIG.cue
        for row, ids in enumerate(one.ids):
            context = items.ids[row // CONFIG.replays, : items.context].tolist()
            pasted = ids[TAIL - H :].tolist()
            start = next(at for at in range(len(context)) if context[at : at + H] == pasted)
            kinds.add("tail" if start == FAR + TAIL - H else "far")
            assert start + H <= FAR or start == FAR + TAIL - H
    assert kinds == {"tail", "far"}


def test_replays_are_drawn_for_each_item_and_step_alone(items: Items) -> None:
    draw = replayed(items, CONFIG)
    together, alone = draw(np.arange(4), 5), draw(np.array([2]), 5)
    np.testing.assert_array_equal(together.ids[4:6], alone.ids)
    assert any((draw(np.array([2]), step).ids != alone.ids).any() for step in range(4))


def test_vectors_are_only_ever_scaled_down() -> None:
    given = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 3, 50)[:, None]
    found = bounded(given, 1.0)
    rms = given.square().mean(-1).sqrt()
    torch.testing.assert_close(found.square().mean(-1).sqrt(), rms.clamp_max(1.0), atol=1e-4, rtol=1e-4)
    assert torch.equal(found[rms < 0.99], given[rms < 0.99]) and (bounded(torch.zeros(2, 8), 1.0) == 0).all()


def test_optimising_lowers_the_loss_within_the_bound_and_leaves_the_base_alone(base: BaseLM, items: Items) -> None:
    before = base.fingerprint, {name: value.clone() for name, value in base.model.named_parameters()}
    start = vectors(base)
    counted_steps = []
    found, curve = optimise(base, pool(base), start, the_answer(items), CONFIG, progress=lambda: counted_steps.append(1))
    assert len(counted_steps) == CONFIG.steps and len(curve) == 10
    assert curve[-1] < curve[0] - 0.05
    after = measure(
        base, None, items, {n: arms.with_gists(lambda i, v=v: v[i.row]) for n, v in {"a": start, "b": found}.items()}
    )
    assert after.nll["b"].mean() < after.nll["a"].mean() - 0.05
    rms = np.sqrt(np.square(found.astype(np.float64)).mean(-1))
    assert found.dtype == np.float16 and rms.max() <= base.embedding_rms * 1.001
    assert all(torch.equal(before[1][name], value) and value.grad is None for name, value in base.model.named_parameters())


def test_items_do_not_influence_each_other_and_a_run_repeats(base: BaseLM, items: Items) -> None:
    draw, start = replayed(items, CONFIG), vectors(base)
    one, _ = optimise(base, pool(base), start, draw, CONFIG)
    two, _ = optimise(base, pool(base), start, draw, CONFIG)
    np.testing.assert_array_equal(one, two)
    apart, _ = optimise(base, pool(base), start, draw, replace(CONFIG, batch=1))
    np.testing.assert_allclose(apart.astype(np.float32), one.astype(np.float32), atol=0.02 * base.embedding_rms)


@pytest.mark.parametrize("kind", ["embedded", "key/value", "none"])
def test_the_result_has_both_bounds_beside_the_references(base: BaseLM, kind: str) -> None:
    torch.manual_seed(0)
    encoders = {"embedded": tiny_gistnet(base), "key/value": tiny_kv_gistnet(base)}
    bundle = Bundle(name="tiny", base=base, gists=encoders.get(kind))
    source = Source(histories=histories(), closed_by=None, name="random")
    result = run(bundle, source, CONFIG, lambda name, total: counted(name, total, quiet=True))
    assert result["kind"] == "capacity" and ("gistnet" in result["config"]) == (kind != "none")
    names = {"full", "drop", "gist", "swapped", "replayed", "replayed_swapped", "answer_seeing"}
    assert set(result["arms"]) == names
    slots = {name: result["arms"][name]["slots"] for name in names}
    assert slots == {**dict.fromkeys(names, FAR / 32), "full": FAR, "drop": 0}
    assert result["arms"]["answer_seeing"]["nll"] < min(result["arms"][name]["nll"] for name in ("gist", "replayed"))
    assert set(result["curves"]) == set(result["reached"]) == {"replayed", "answer_seeing"}
    assert all("share" in found or not found["judged"] for found in result["reached"].values())
    json.dumps(result, allow_nan=False)


def test_the_command_writes_one_file_and_shows_a_table(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "bundle")
    for package in ("one", "two"):
        (tmp_path / "docs" / package).mkdir(parents=True)
        (tmp_path / "docs" / package / "a.py").write_text("".join(f"{package}_{n} = {n * n}\n" for n in range(150)))
    file = tmp_path / "out" / "capacity.json"
    words = ["bench", "capacity", "--json", file, "--quick", "--model", bundle, "--documents", tmp_path / "docs"]
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    assert result["quick"] and result["config"]["items"] == 4 and "commit" in result["environment"]
    assert "optimised on the far text replayed" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"items": 1}, "at least 2 items"), ({"lr": 0.0}, "above 0"), ({"cue": 32}, "must rise"), ({"tail_share": 1.5}, "share")],
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **wrong)
