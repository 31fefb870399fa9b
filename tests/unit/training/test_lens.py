"""Labels say what raw really saves, and LensNet learns which way they point: a turned sign or shuffled labels show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from megacontext.engine.assemble import slots_of
from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.errors import InvariantError
from megacontext.evaluation.arms import Item, make_reader, window_of
from megacontext.evaluation.items import Items
from megacontext.evaluation.scoring import Chunk, Scorer
from megacontext.evaluation.worth import worth_of_sets
from megacontext.models import LensNet, LensNetConfig
from megacontext.models.positions import window_ranks
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.training.labels import Labelling, Labels, measure_labels, replay
from megacontext.training.lens import fitted_line, ranking_loss, reliability, top_gain

FAR, TAIL, HORIZON = 128, 128, 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(save_tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def items() -> Items:
    ids = np.random.default_rng(0).integers(5, 200, (3, FAR + TAIL + HORIZON))
    return Items(ids=ids, group=np.arange(3), far=FAR, tail=TAIL, horizon=HORIZON)


def labelled(bundle: Bundle, items: Items, folder: Path, **changes: object) -> Labels:
    assert bundle.gists is not None
    labelling = replace(Labelling(blocks=3, on_policy=0.5, seed=7), **changes)  # type: ignore[arg-type]
    return measure_labels(bundle.base, bundle.gists, items, labelling, folder=folder)


def test_a_label_is_the_nll_with_the_gist_minus_that_with_the_tokens(bundle: Bundle, items: Items, tmp_path: Path) -> None:
    labels = labelled(bundle, items, tmp_path)
    scorer = Scorer(base=bundle.base, encoder=bundle.gists, strategy=window_ranks(bundle.gists))
    for row in range(len(items)):
        item = Item(
            ids=items.ids[row], far=FAR, tail=TAIL, reader=make_reader(items.ids[row], bundle.gists, bundle.base), row=row
        )
        block = int(labels.blocks[row, 0])
        nll = []
        for lod in (1, 0):
            pattern = labels.state[row].copy()
            pattern[block] = lod
            slots = slots_of(window_of(item, pattern, item.context), item.reader, np.zeros(0, np.int64), gists=True)
            nll += scorer([Chunk(context=slots, following=item.scored, start=item.context)])
        np.testing.assert_allclose(labels.worth[row, 0], nll[0] - nll[1], atol=5e-3)
        pair = labels.blocks[row, :2]
        both = worth_of_sets(item, scorer, labels.state[row], [pair, pair[:1], pair[1:]])
        assert both.shape == (3, HORIZON) and not np.allclose(both[0], both[1] + both[2], atol=1e-6)
    assert set(labels.state.sum(axis=1).tolist()) <= {0, FAR // 32} and labels.worth.std() > 0


def test_labels_resume_and_a_shuffled_or_turned_file_is_refused(bundle: Bundle, items: Items, tmp_path: Path) -> None:
    first = labelled(bundle, items, tmp_path)
    (path,) = tmp_path.glob("labels-*.safetensors")
    again = labelled(bundle, items, tmp_path)
    np.testing.assert_array_equal(again.worth, first.worth)
    labelled(bundle, items, tmp_path, blocks=2)
    assert len(list(tmp_path.glob("labels-*.safetensors"))) == 2, "other labels have another name"
    stored = load_file(str(path))
    for spoiled in (stored["worth"][::-1].copy(), -stored["worth"]):
        save_file({**stored, "worth": spoiled}, str(path))
        with pytest.raises(InvariantError, match="label anew"):
            labelled(bundle, items, tmp_path)


def test_replayed_points_average_the_interval_that_follows_them(bundle: Bundle, items: Items, tmp_path: Path) -> None:
    labels = labelled(bundle, items, tmp_path)
    points = replay(labels, 8, names=("suffix", "log_distance"))
    assert points.features.shape == (6, 3, 2) and points.item.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(points.gain[1], labels.worth[0, :, 8:16].astype(np.float32).mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(points.query[1], items.ids[0, FAR + TAIL + 8 - 128 : FAR + TAIL + 8])
    assert len(replay(labels, 8, stride=4)) == 9


def planted(sign: float = 1.0, shuffled: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """Features of which the first decides the gain."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 12, 16)).astype(np.float32)
    gain = (0.02 * features[..., 0] + 0.01 * rng.normal(size=(200, 12))).astype(np.float32)
    learned = rng.permutation(gain.ravel()).reshape(gain.shape) if shuffled else sign * gain
    net = LensNet(LensNetConfig(width=4, features=16, layers=0, unit="nats"))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    x, y = torch.from_numpy(features), torch.from_numpy(learned.astype(np.float32)) / 0.02
    for _ in range(60):
        scores = net(x, torch.zeros(200, 12, 4), torch.zeros(200, 1, 4), torch.ones(200, 12, dtype=torch.int64))
        loss = (scores - y).square().mean() + 0.1 * ranking_loss(scores, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return scores.detach(), gain


def share(scores: torch.Tensor, gain: np.ndarray) -> float:
    return top_gain(scores.numpy(), gain) / top_gain(gain, gain, positive=True)


def test_true_labels_win_most_and_turned_or_shuffled_ones_do_not() -> None:
    assert share(*planted()) > 0.8
    assert share(*planted(sign=-1.0)) < -0.3
    assert abs(share(*planted(shuffled=True))) < 0.5


def test_calibration_makes_predicted_and_measured_gains_equal() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(300, 10)).astype(np.float32)
    gain = (0.03 * scores + 0.002 + 0.02 * rng.normal(size=scores.shape)).astype(np.float32)
    slope, offset = fitted_line(scores, gain)
    assert slope == pytest.approx(0.03, abs=2e-3) and offset == pytest.approx(0.002, abs=2e-3)
    for predicted, measured in reliability((slope * scores + offset).astype(np.float32), gain):
        assert predicted == pytest.approx(measured, abs=5e-3)
    assert fitted_line(np.zeros((3, 2), np.float32), np.full((3, 2), 0.5, np.float32)) == (0.0, 0.5)
