"""The smoke tests that the project's plan names, each on real parts with tiny random models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import megacontext
from megacontext.core import (
    AllocatorConfig,
    Collapse,
    EditHistory,
    Expand,
    FocusScores,
    GreedyAllocator,
    Timeline,
    WorkingContext,
    apply,
    apply_all,
    invariants,
    is_legal,
    legal_edits,
    why_illegal,
)
from megacontext.engine.bundle import load_bundle
from megacontext.engine.events import Event, TokenDecoded
from megacontext.engine.session import SessionConfig
from megacontext.errors import BudgetError, CorruptObject, EditError, ModelMismatch
from megacontext.models.base_lm import BaseLM, identity_gap
from megacontext.models.lensnet import mask_illegal
from megacontext.testing.content import content_of
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.testing.tiny_models import save_tiny
from megacontext.training.dataset import load_split
from megacontext.training.slices import load_slices
from tools import decode_demo, prepare_dataset, run_poc_loop

FAMILIES = ("gpt2", "llama", "qwen3", "smollm3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("models") / "bundle")


def synthetic_stream(seed: int, lines: int) -> str:
    """The same text for the same seed: definitions, and later calls of them."""
    rng = np.random.default_rng(seed)
    names = [f"name_{number}" for number in range(40)]
    parts = [f"def {name}(x):\n    return x + {index}\n" for index, name in enumerate(names)]
    parts += [f"print({names[pick]}({pick}))\n" for pick in rng.integers(0, 40, lines)]
    return "".join(parts)


# -- dataset preparation is deterministic ---------------------------------------------------------


def corpus(folder: Path) -> Path:
    """Sixty packages, enough for every split to have some."""
    for number in range(60):
        package = folder / "lib" / f"package{number}"
        package.mkdir(parents=True)
        (package / "code.py").write_text(synthetic_stream(number, 40).replace("name_", f"name_{number}_"))
    return folder / "lib"


def test_dataset_preparation_is_deterministic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = corpus(tmp_path)
    settings = ["--vocab-size", "300", "--held-out-percent", "10", "--slices", "--context-length", "256", "--stride", "128"]
    for name in ("one", "two"):
        assert prepare_dataset.main(["--output", str(tmp_path / name), *settings, str(root)]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) >= 8
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert load_split(tmp_path / "one", "train").ids.shape[1] == 32
    assert load_slices(tmp_path / "one", "train").ids.shape[1:] == (8, 32)
    assert "slices of 256 + 64 tokens" in capsys.readouterr().out


def test_dataset_preparation_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_dataset.main(["--output", str(tmp_path / "data"), str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err


# -- the base loads -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_base_model_loads_and_gives_its_own_logits(tmp_path: Path, family: str) -> None:
    base = BaseLM.from_pretrained(save_tiny(tmp_path / family, family))
    ids = torch.randint(0, 256, (2, 70), generator=torch.Generator().manual_seed(0))
    assert base.family == family and base.width == 32 and base.context_length == 512
    assert identity_gap(base, ids) < 1e-4


def test_decode_demo_streams_and_proves_its_logits(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(f"model: {bundle}\nprompt: 'def main('\nmax_new_tokens: 5\n")
    assert decode_demo.main(["--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "def main(" in shown and shown.count("%") >= 5 and shown.rstrip().endswith("the same")
    config.write_text(f"model: {tmp_path}/absent\n")
    assert decode_demo.main(["--config", str(config)]) == 2
    assert "absent" in capsys.readouterr().err


# -- GistNet and LensNet --------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 5])
def test_gistnet_shapes(bundle: Path, level: int) -> None:
    models = load_bundle(bundle)
    assert models.gists is not None
    children = torch.randn(7, 32, models.base.width, generator=torch.Generator().manual_seed(1))
    gists = models.gists.encode_canonical(children, torch.ones(7, 32, dtype=torch.bool), level)
    assert gists.shape == (7, 1, models.base.width) and gists.dtype == torch.float16
    rms = gists.float().square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, models.base.embedding_rms), rtol=1e-2, atol=1e-3)


def test_lensnet_shapes_and_range(bundle: Path) -> None:
    models = load_bundle(bundle)
    assert models.lens is not None
    rng, width = torch.Generator().manual_seed(1), models.base.width
    features = torch.randn(2, 9, models.lens.config.features, generator=rng)
    scores = models.lens(features, torch.randn(2, 9, width), torch.randn(2, 16, width), torch.ones(2, 9, dtype=torch.int64))
    assert scores.shape == (2, 9) and float(scores.detach().abs().max()) <= 1


def test_legality_masks() -> None:
    scores = torch.tensor([[0.5, -0.5, 0.7, -0.7]])
    can_expand = torch.tensor([[False, True, True, True]])
    can_collapse = torch.tensor([[True, True, True, False]])
    assert torch.equal(mask_illegal(scores, can_expand, can_collapse), torch.tensor([[0.0, -0.5, 0.7, 0.0]]))
    window = WorkingContext.coarsest(Timeline(2 * 32**2 + 40, 5), 4000, 64)
    for node in zip(window.lod.tolist(), window.index.tolist(), strict=True):
        assert is_legal(Expand(*node), window) == (node[0] > 0)
    assert why_illegal(Collapse(1, window.timeline.blocks - 1), window) is not None  # the tail stays raw
    with pytest.raises(EditError):
        apply(Collapse(9, 0), window)


# -- budget and allocator -------------------------------------------------------------------------


def test_budget_calculation() -> None:
    timeline = Timeline(32 + 3, 7)
    window = WorkingContext.coarsest(timeline, 500, 64)
    # One LOD2 gist, one LOD1 gist, two raw blocks of the tail (and the third it touches), seven open tokens.
    raw = int((window.lod == 0).sum())
    assert window.cost == 32 * raw + int((window.lod > 0).sum()) + 7
    opened = apply(Expand(2, 0), window)
    assert opened.cost == window.cost + 31
    assert apply(Expand(1, 0), opened).cost == opened.cost + 31
    with pytest.raises(BudgetError):
        WorkingContext.coarsest(timeline, 64, 64)


def scores(window: WorkingContext, of: Callable[[int, int], float]) -> FocusScores:
    nodes = zip(window.lod.tolist(), window.index.tolist(), strict=True)
    return FocusScores(np.array([of(*node) for node in nodes], np.float32))


def plan(window: WorkingContext, of: Callable[[int, int], float], **settings: Any) -> Any:
    allocator = GreedyAllocator(AllocatorConfig(**{"cooldown": 0, "reserve": 0, **settings}))
    return allocator.plan(window, scores(window, of), EditHistory())


def test_allocator_edge_cases() -> None:
    empty = WorkingContext.coarsest(Timeline(0), 100, 32)
    assert plan(empty, lambda lod, index: 1.0).edits == ()
    window = apply(Expand(2, 0), WorkingContext.coarsest(Timeline(40), 500, 64))
    assert plan(window, lambda lod, index: 0.0).edits == ()
    assert plan(window, lambda lod, index: 1.0, max_edits=0).edits == ()
    everything = plan(window, lambda lod, index: 1.0, max_edits=None)
    assert len(everything.edits) > 0 and apply_all(everything.edits, window).cost <= window.budget
    tight = WorkingContext(window.timeline, window.lod, window.index, window.cost, window.recent)
    assert plan(tight, lambda lod, index: 1.0).edits == ()  # nothing fits, nothing may close
    assert plan(window, lambda lod, index: -1.0).edits == (Collapse(2, 0),)
    assert len(plan(window, lambda lod, index: 0.9 if lod == 1 else 0.0, max_edits=2).edits) == 2
    for edit in legal_edits(window):
        invariants.check_window(apply(edit, window))


# -- the tree -------------------------------------------------------------------------------------


def test_tree_ingest_and_persistence_round_trip(bundle: Path, tmp_path: Path) -> None:
    text = synthetic_stream(1, 1500)
    memory = megacontext.init(tmp_path / "one.mc", model=bundle)
    receipt = memory.add(text=text, name="stream")
    assert (receipt.documents, receipt.tokens) == (1, len(text.encode()) + 1)  # the end-of-text token is one
    again = megacontext.open(tmp_path / "one.mc")
    assert again.text(again.find_document("text:stream")) == text
    assert content_of(again.snapshot()) == content_of(memory.snapshot())
    snapshot = again.snapshot()
    layer = snapshot.layer()
    counts = {lod: len(layer.gists(lod, 0, layer.count(lod))) for lod in (1, 2)}
    assert snapshot.timeline().levels == 2
    invariants.tree(snapshot.timeline(), counts)
    assert again.fsck().clean
    assert again.add(text=text, name="stream").unchanged == ("text:stream",)


def test_damage_is_found_and_named(bundle: Path, tmp_path: Path) -> None:
    memory = megacontext.init(tmp_path / "one.mc", model=bundle)
    memory.add(text=synthetic_stream(1, 300), name="stream")
    victim = max(
        (path for path in (tmp_path / "one.mc" / "objects").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(bytes(data))
    damaged = megacontext.open(tmp_path / "one.mc")
    report = damaged.fsck()
    assert not report.clean and victim.name in str(report.findings)
    with pytest.raises(CorruptObject, match=victim.name):
        snapshot = damaged.snapshot()
        snapshot.tokens(0, snapshot.blocks), snapshot.gists(1, 0, snapshot.blocks)


def test_another_models_memory_is_refused(bundle: Path, tmp_path: Path) -> None:
    memory = megacontext.init(tmp_path / "one.mc", model=bundle)
    memory.add(text=synthetic_stream(1, 10), name="stream")
    other = save_tiny_bundle(tmp_path / "other", seed=1)
    with pytest.raises(ModelMismatch, match="another GistNet"):
        megacontext.open(tmp_path / "one.mc", model=other).session()


# -- the whole loop on a deterministic synthetic stream -------------------------------------------


def loop(bundle: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    (folder / "stream.py").write_text(synthetic_stream(3, 400))
    config = {
        "model": str(bundle),
        "sources": (str(folder / "stream.py"),),
        "turns": ("print(name_7(", "x" * 400, "def name_41(x):\n"),
        "budget": 224,
        "recent": 64,
        "refocus_every": 8,
        "tokens_per_turn": 40,
        **changes,
    }
    records: list[dict[str, Any]] = []
    run_poc_loop.run(run_poc_loop.LoopConfig.model_validate(config), records.append)
    return records


@pytest.mark.parametrize("policy", ["lens", "retrieval", "recency", "random"])
def test_integration_on_a_synthetic_stream(bundle: Path, tmp_path: Path, policy: str) -> None:
    first = loop(bundle, tmp_path / "one", policy=policy)
    second = loop(bundle, tmp_path / "two", policy=policy)
    invariants.determinism(first, second)
    steps = [record for record in first if "cost" in record]
    assert all(record["cost"] <= record["budget"] for record in steps)
    kinds = [record["event"] for record in steps]
    # A turn ends early where the random model happens to draw the end of text.
    assert 60 < kinds.count("decode") <= 120 and 8 < kinds.count("refocus") <= 3 + 3 * 4 and "room" in kinds
    tokens = [record["tokens"] for record in steps]
    assert tokens == sorted(tokens)
    end = first[-1]
    assert end["expansions"] > 0 and end["collapses"] > 0 and end["slots_reused"] > 0


def test_a_plain_base_works_without_gists_and_says_so(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "qwen3")
    assert len(load_bundle(model).missing) == 2
    records = loop(model, tmp_path / "run", budget=400)
    assert records[-1]["expansions"] > 0


def test_the_loop_logs_json_lines(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stream.py").write_text(synthetic_stream(3, 50))
    config = tmp_path / "loop.yaml"
    sizes = "budget: 224\nrecent: 64\ntokens_per_turn: 4\n"
    config.write_text(f"model: {bundle}\nmemory: {tmp_path}/kept.mc\nsources: [{tmp_path}/stream.py]\nturns: ['a']\n{sizes}")
    assert run_poc_loop.main(["--config", str(config), "--log", str(tmp_path / "log.jsonl")]) == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events[0] == "ingest" and events[-1] == "end"
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    assert run_poc_loop.main(["--config", str(config)]) == 0  # the memory is there: nothing is ingested twice
    assert json.loads(out.getvalue().splitlines()[0])["documents"] == 0


def test_a_window_never_exceeds_its_budget_over_a_long_generation(bundle: Path, tmp_path: Path) -> None:
    memory = megacontext.init(tmp_path / "long.mc", model=bundle)
    memory.add(text=synthetic_stream(5, 200), name="stream")
    costs: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, TokenDecoded):
            costs.append(event.cost)

    config = SessionConfig(budget=160, recent=32, refocus_every=8)
    with memory.session(config=config, listener=note) as session:
        while len(costs) < 320:
            for _ in session.generate(f"after {len(costs)}\n", max_new_tokens=80):
                invariants.check_window(session.window)
    assert max(costs) <= 160
