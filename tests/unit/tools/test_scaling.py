"""Laws over the size of the base: planted ones are found again, and their intervals are as wide as they have to be."""

from __future__ import annotations

import numpy as np
import pytest
from result_files import run, sized

from megacontext.errors import DatasetError
from tools.report.scaling import Size, by_arm, fit, largest_from_others, sizes, student


def points(values: list[tuple[int, float]], figure: str = "full", arm: str = "plain") -> list[Size]:
    return [
        Size(arm=arm, width=1, parameters=parameters, tokens=None, gist_runs=1, figures={figure: value})
        for parameters, value in values
    ]


def test_a_planted_power_law_and_a_planted_line_are_found() -> None:
    found = sizes(
        [each for width, count in ((96, 700_000), (128, 1_250_000), (192, 2_600_000)) for each in sized(width, count)]
    )
    loss, recovered = fit(found, "full"), fit(found, "recovered/gist")
    assert loss is not None and recovered is not None
    assert loss.b == pytest.approx(-0.13) and loss.at(1e9) == pytest.approx(20 * 1e9**-0.13)
    assert recovered.at(2e9) - recovered.at(1e9) == pytest.approx(0.04)
    assert recovered.interval(1e9) == pytest.approx((recovered.at(1e9),) * 2)
    assert largest_from_others(found, "full") == pytest.approx((20 * 2_600_000**-0.13,) * 2)


def test_intervals_hold_the_truth_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([7e5, 1.25e6, 2.6e6, 4.5e6])
    held = 0
    for _ in range(400):
        noisy = 0.1 + 0.05 * np.log(counts) + rng.normal(0, 0.02, 4)
        law = fit(points([(int(n), float(y)) for n, y in zip(counts, noisy, strict=True)], "real"), "real")
        assert law is not None
        low, high = law.interval(1e9)
        held += low <= 0.1 + 0.05 * np.log(1e9) + rng.normal(0, 0.02) <= high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042)])
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=2e-3)


def test_three_measurements_of_two_sizes_make_no_law() -> None:
    assert fit(points([(10, 2.0), (10, 2.1), (100, 1.5)]), "full") is None
    assert fit(points([(10, 2.0), (100, 1.7), (1000, 1.5)]), "full") is not None
    assert fit(points([(10, 2.0), (100, 1.7), (1000, 1.5)]), "real") is None


def test_a_loss_of_zero_has_no_power_law_but_a_gain_below_zero_has_a_line() -> None:
    assert fit(points([(10, 0.0), (100, 1.7), (1000, 1.5)]), "full") is None
    assert fit(points([(10, -0.1), (100, 0.0), (1000, 0.1)], "real"), "real") is not None


def test_a_law_that_fails_on_the_largest_size_shows_it() -> None:
    found = largest_from_others(points([(10, 0.1), (100, 0.2), (1000, 0.0)], "real"), "real")
    assert found == pytest.approx((0.3, 0.0))
    assert largest_from_others(points([(10, 0.1), (100, 0.2)], "real"), "real") is None


def test_gistnets_find_their_base_by_its_folder_and_count_as_a_mean() -> None:
    base, gist = sized(96, 700_000, **{"recovered/gist": 0.2, "recovered/swapped": 0.0})
    seed1 = run("w96-gist-1", group="scaling", config={"base": "runs/w96-base/model"}, **gist["chosen"]["figures"])
    seed1["chosen"]["figures"]["recovered/gist"] = 0.4
    other_group = run("w96-other", group="losses", config={"base": "runs/w96-base/model"}, **{"recovered/gist": 1.0})
    similar = run("w96-base2-gist", group="scaling", config={"base": "runs/w96-base2/model"}, **{"recovered/gist": 1.0})
    (size,) = sizes([base, gist, seed1, other_group, similar])
    assert size.gist_runs == 2 and size.tokens == 5_000_000 and size.width == 96
    assert size.figures["recovered/gist"] == pytest.approx(0.3)
    assert size.figures["real"] == pytest.approx(0.3)


def test_a_native_base_has_the_width_of_its_plain_one_and_a_line_of_its_own() -> None:
    base, gist = sized(96, 700_000)
    native = run("w96-native", trains="native", group="scaling", config={"init": "runs/w96-base/model"}, full=2.5)
    native["parameters"] = {"base": 700_000, "gistnet": 50_000}
    gist["config"]["base"] = "runs/w96-native/model/base"
    plain, own = sizes([native, gist, base])
    assert (plain.arm, plain.gist_runs, own.arm, own.gist_runs) == ("plain", 0, "native", 1)
    assert own.width == 96 and own.parameters == 700_000
    assert list(by_arm([plain, own])) == ["plain", "native"]


def test_tokens_of_a_native_base_are_known_only_with_those_of_its_plain_one() -> None:
    base, _ = sized(96, 700_000, tokens=None)
    native = run("w96-native", trains="native", group="scaling", config={"init": "runs/w96-base/model"}, full=2.5)
    native |= {"parameters": {"base": 700_000}, "tokens": 100}
    assert [size.tokens for size in sizes([base, native])] == [None, None]
    base["tokens"] = 1_000
    assert [size.tokens for size in sizes([base, native])] == [1_000, 1_100]
    alone = run("alone", trains="native", group="scaling", config={"init": "elsewhere/model"}, full=2.5)
    alone |= {"parameters": {"base": 700_000}, "tokens": 100}
    assert [size.tokens for size in sizes([alone])] == [None]


def test_a_base_without_its_model_is_an_error_that_says_what_to_do() -> None:
    base, _ = sized(96, 700_000)
    base["parameters"] = {}
    with pytest.raises(DatasetError, match="summarise it again"):
        sizes([base])
