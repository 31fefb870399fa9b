"""The page of results: what is committed is what the files give, and no figure comes from anywhere else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from result_files import capacity, quality, run, save, sized, storage, suffix

from megacontext.errors import ConfigError, DatasetError
from tools.render_results import FIGURES, PAGE, TEMPLATE, TEMPLATES, main, render_pages
from tools.report.files import load_results
from tools.report.targets import target_rows
from tools.report.template import NOTE, PLACEHOLDER, render

ROOT = Path(__file__).parents[3]
LARGEST_FIGURE = 100_000
STORAGE, FOCUS = "docs/storage.md", "docs/focus.md"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with no results yet and this one's template, which names its results as these tests do."""
    (tmp_path / TEMPLATE).parent.mkdir()
    template = (ROOT / TEMPLATE).read_text()
    for name, path in (("best", "quality.bundled-quality"), ("bound", "capacity.bundled-capacity")):
        template, found = re.subn(rf"<!-- let: {name} = \S+ -->", f"<!-- let: {name} = {path} -->", template)
        assert found == 1
    (tmp_path / TEMPLATE).write_text(template)
    performance = TEMPLATES["docs/performance.md"]
    (tmp_path / performance).write_text((ROOT / performance).read_text())
    storage = (ROOT / TEMPLATES[STORAGE]).read_text()
    storage, found = re.subn(r"<!-- let: full = \S+ -->", "<!-- let: full = storage.disk -->", storage)
    assert found == 1
    (tmp_path / TEMPLATES[STORAGE]).write_text(storage)
    focus = (ROOT / TEMPLATES[FOCUS]).read_text()
    focus, found = re.subn(r"<!-- let: index = \S+ -->", "<!-- let: index = suffix.places -->", focus)
    assert found == 1
    (tmp_path / TEMPLATES[FOCUS]).write_text(focus)
    return tmp_path


def page(root: Path) -> str:
    return render_pages(root)[PAGE]


def test_what_is_committed_is_what_the_results_give() -> None:
    assert main(["--check"]) == 0


def test_curves_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / FIGURES).iterdir()}
    assert sizes and {name: size for name, size in sizes.items() if size >= LARGEST_FIGURE} == {}


@pytest.mark.parametrize(("name", "placeholders"), [(TEMPLATE, 20), (TEMPLATES[STORAGE], 6)])
def test_no_figure_of_the_prose_is_typed(name: str, placeholders: int) -> None:
    template = NOTE.sub("", (ROOT / name).read_text())
    prose = PLACEHOLDER.sub("", re.sub(r"<!--.*?-->", "", template, flags=re.DOTALL))
    typed = re.findall(r".*\d.*", re.sub(r"\bLOD\d\b", "", prose))
    assert typed == []
    assert len(PLACEHOLDER.findall(template)) > placeholders


def test_the_page_follows_the_files(root: Path) -> None:
    save(root, bundled_quality=quality(gist=2.75))
    before = page(root)
    save(root, bundled_quality=quality(gist=2.85))
    after = page(root)
    assert "| gists, nothing expanded | 28 | 2.750 |" in before
    assert "| gists, nothing expanded | 28 | 2.850 |" in after
    assert "recovered ≥ 0.5 | 0.62 [0.57, 0.68] | met" in before or "recovered ≥ 0.5 | 0.63 [0.58, 0.68] | met" in before
    assert re.search(r"recovered ≥ 0\.5 \| 0\.3\d \[0\.3\d, 0\.4\d\] \| \*\*missed\*\*", after)


def test_every_quality_result_is_a_row_of_the_comparison(root: Path) -> None:
    save(root, bundled_quality=quality(gist=2.75), other_quality_plain=quality(gist=2.85))
    rows = [line for line in page(root).splitlines() if re.match(r"\| (shipped|plain) \|", line)]
    assert len(rows) == 2 and rows[0] != rows[1]


def test_without_results_nothing_is_claimed(root: Path) -> None:
    pages = render_pages(root)
    assert list(pages) == list(TEMPLATES) and "|" not in pages[STORAGE].split("-->")[1] and "{{" not in pages[STORAGE]
    assert re.findall(r"^## .*", pages[PAGE], re.MULTILINE) == ["## Where the figures are from"]
    assert "|" not in pages[PAGE] and "{{" not in pages[PAGE]


def test_sections_without_their_files_are_left_out(root: Path) -> None:
    without_budgets = {key: value for key, value in quality().items() if key != "budgets"}
    save(root, bundled_quality=without_budgets)
    text = page(root)
    assert "## The shipped checkpoint" in text
    assert "By budget" not in text and "Size of the base" not in text and "Experiments" not in text
    save(root, bundled_quality=quality())
    assert "### By budget" in page(root)


def test_capacity_has_a_section_and_a_curve_of_its_own(root: Path) -> None:
    save(root, bundled_quality=quality())
    assert "How much could one vector carry?" not in page(root)
    save(root, bundled_capacity=capacity())
    pages = render_pages(root)
    assert "| optimised on the far text replayed (fair bound) | 28 | 2.500 [2.490, 2.510] | 1.25 [1.20, 1.30] |" in pages[PAGE]
    assert "| optimised on the far text replayed (fair bound) | 0.40 [0.30, 0.50] | 0.40 [0.30, 0.50] |" in pages[PAGE]
    assert "| optimised on the answer (looks at it) | not judged | not judged |" in pages[PAGE]
    assert f"{FIGURES}/capacity-shipped.svg" in pages


def test_storage_has_a_page_of_its_own(root: Path) -> None:
    save(root, disk=storage(open_ms=12.5))
    pages = render_pages(root)
    assert "| opening | ≤ 10 ms | 12.50 ms | **missed** |" in pages[STORAGE]
    assert "| open at 1,000,000 blocks | 12.5 ms | 20 ms | 5 ms | 0.1 ms | 0.2 ms | 125.00 |" in pages[STORAGE]
    assert "`disk.json`" in pages[STORAGE] and "disk.json" not in pages[PAGE]


def test_focus_has_a_page_of_its_own(root: Path) -> None:
    assert "bytes a token" not in render_pages(root)[FOCUS]
    save(root, places=suffix(bytes_per_token=12.5))
    pages = render_pages(root)
    assert "| 1,000,000 | 9 | 12.5 | 2.0 | 150 / 300 | – | 9,000 |" in pages[FOCUS]
    assert "places.json" not in pages[PAGE]


def test_a_group_has_a_table_of_what_differs_and_a_curve(root: Path) -> None:
    for readout, recovered in (("mean", 0.1), ("softmax_pool", 0.4)):
        config = {"gistnet": {"readout": readout, "vectors": 1}, "checkpoint_every_s": recovered}
        figures = {"recovered/gist": recovered, "recovered/swapped": 0.05}
        save(root, **{readout: run(readout, group="read-out", config=config, **figures)})
    pages = render_pages(root)
    assert "### Read-out" in pages[PAGE]
    assert "| softmax_pool | gistnet.readout softmax_pool | 300 | 0.400 | 0.050 | 0.350 |" in pages[PAGE]
    assert f"{FIGURES}/group-read-out.svg" in pages


def test_a_trainer_s_field_that_an_older_run_lacks_has_its_default_and_a_recipe_s_field_has_not(root: Path) -> None:
    newer = {"weight_decay": 0.01, "clip": 2.0, "gistnet": {"hidden": 64}}
    save(root, old=run("old", group="g", full=3.0), new=run("new", group="g", config=newer, full=2.9))
    assert "| new | clip 2.0, gistnet.hidden 64 | 300 | 2.900 |" in page(root)
    assert "| old | clip 1.0 | 300 | 3.000 |" in page(root)


def test_scaling_needs_three_sizes_for_a_law(root: Path) -> None:
    pairs = [sized(96, 700_000), sized(128, 1_250_000), sized(192, 2_600_000)]
    for number, pair in enumerate(pairs):
        save(root, **{each["name"].replace("-", "_"): each for each in pair})
        assert f"\n{number + 1} size" in page(root)
        assert ("Do not lean on this" in page(root)) == (number == 2)
    pages = render_pages(root)
    assert "times beyond the largest base" in pages[PAGE]
    assert f"{FIGURES}/scaling-plain.svg" in pages
    assert "| plain | 192 | 2,600,000 | 5,000,000 | 1 |" in pages[PAGE]


def test_check_finds_an_edited_page_a_missing_one_and_a_stale_curve(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, bundled_quality=quality())
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    text = (root / PAGE).read_text()
    (root / PAGE).write_text(text.replace("2.750", "2.650"))
    assert main(["--root", str(root), "--check"]) == 1
    assert "docs/poc_results.md" in capsys.readouterr().err
    (root / PAGE).write_text(text)
    (root / FIGURES / "run-gone.svg").write_text("<svg/>")
    assert main(["--root", str(root), "--check"]) == 1
    assert main(["--root", str(root)]) == 0
    assert not (root / FIGURES / "run-gone.svg").exists()
    (root / FIGURES / "arms-shipped.svg").unlink()
    assert main(["--root", str(root), "--check"]) == 1
    assert "arms-shipped.svg (missing)" in capsys.readouterr().err


def test_curves_have_the_same_bytes_every_time_and_no_date(root: Path) -> None:
    save(root, bundled_quality=quality(), **{each["name"].replace("-", "_"): each for each in sized(96, 700_000)})
    one, two = render_pages(root), render_pages(root)
    assert one == two and len(one) > 2
    assert not any(re.search(r"\d{4}-\d\d-\d\dT|matplotlib\.org", text) for name, text in one.items() if name.endswith(".svg"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "'kind' must be one of"), ('{"kind": "poem"}', "'kind' must be one of")],
)
def test_a_file_that_is_no_result_is_named(root: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(root, bundled_quality=quality())
    (root / "benchmarks/results/odd.json").write_text(content)
    assert main(["--root", str(root), "--check"]) == 2
    assert "odd.json" in (err := capsys.readouterr().err) and message in err


def test_names_with_dots_and_two_results_of_one_name_are_refused(root: Path) -> None:
    save(root, bundled_quality=quality())
    folder = root / "benchmarks/results"
    (folder / "runs" / "bundled-quality.json").write_text(json.dumps(quality()))
    with pytest.raises(DatasetError, match="two results of kind quality are called bundled-quality"):
        load_results(folder)
    (folder / "runs" / "bundled-quality.json").rename(folder / "runs" / "v1.2.json")
    with pytest.raises(DatasetError, match="must have no dot"):
        load_results(folder)


DATA: dict[str, Any] = {"a": {"x": 1234.5, "ci": [0.1, 0.25], "name": "w"}, "empty": {}}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{a.x|,.1f}} {{a.ci|ci.2f}} {{ a.name }}", "1,234.5 [0.10, 0.25] w"),
        ("<!-- let: b = a -->\n{{b.x|.0f}}", "1234"),
        ("<!-- needs: a, a.x -->\nyes\n<!-- /needs -->\n", "yes"),
        ("before\n<!-- needs: a, a.y -->\n{{a.y}}\n<!-- /needs -->\nafter", "before\nafter"),
        ("<!-- needs: empty -->\nno\n<!-- /needs -->\nend", "end"),
        ('{{twice(a.x)}}, {{twice("w")}}', "2469.0, ww"),
        ("<!-- note: of no\nconcern 5 -->\nkept", "kept"),
    ],
)
def test_templates(template: str, text: str) -> None:
    assert render(template, DATA, {"twice": lambda value: str(2 * value)}) == text + "\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{a.z|.2f}}", "names {{a.z}}, which no result file holds"),
        ("{{a}}", "is no figure but has x, ci, name inside"),
        ("{{thrice(a)}}", "there is only twice"),
        ("{{twice(a.z)}}", "hands a.z to a block"),
        ("<!-- needs: a -->\n{{a.x}}", "marker without its counterpart"),
    ],
)
def test_a_template_that_names_what_is_not_there_is_an_error(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        render(template, DATA, {"twice": lambda value: str(2 * value)})


def test_targets_speak_only_of_what_was_measured_and_tell_a_miss() -> None:
    verdicts = {text: verdict for text, _, verdict in target_rows(quality(gist=2.65))}
    assert set(verdicts.values()) == {"met"}
    worse = quality(gist=2.99)
    worse["config"]["items"] = 120
    worse["differences"]["gist-drop"]["ci"] = [-0.02, 0.001]
    worse["unneeded_cost"]["nats"] = 0.02
    missed = {text for text, _, verdict in target_rows(worse) if verdict != "met"}
    assert {
        "at least 300 items",
        "gists below drop, clear of zero",
        "recovered ≥ 0.5",
        "unneeded gists cost ≤ 0.01 nats",
    } <= missed
    assert not any("LOD2" in text for text in verdicts)
    with_lod2 = quality() | {"lod2": {"judged": True, "kept_of_lod1": 0.2, "kept_of_lod1_ci": [0.1, 0.3]}}
    assert ("LOD2 keeps at least 30% of LOD1's gain", "20% [10%, 30%]", "**missed**") in target_rows(with_lod2)
