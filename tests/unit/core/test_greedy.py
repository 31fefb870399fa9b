from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, scores_for, windows
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import (
    AllocatorConfig,
    Collapse,
    EditHistory,
    ExactAllocator,
    ExactConfig,
    Expand,
    FocusScores,
    GreedyAllocator,
    Plan,
    Targets,
    Timeline,
    WorkingContext,
    apply,
    apply_all,
    invariants,
    inverse,
    objective,
)
from megacontext.errors import ConfigError, EditError, InvalidInput


def allocator(**config: object) -> GreedyAllocator:
    return GreedyAllocator(AllocatorConfig(**{"reserve": 0, **config}))  # type: ignore[arg-type]


def flat(lods: list[int], budget: int, recent: int = 0) -> WorkingContext:
    """One entry (raw or LOD1) for each block."""
    return WorkingContext(Timeline(len(lods)), np.array(lods), np.arange(len(lods)), budget, recent)


def reasons(plan: Plan) -> dict[object, str]:
    return {decision.edit: decision.reason for decision in plan.decisions}


@STEADY
@given(windows(), st.integers(0, 99), st.sampled_from([0, 3, 12]), st.sampled_from([None, 0, 1, 4]))
def test_plans_are_legal_explained_and_within_limits(window: WorkingContext, seed: int, targets: int, most: int | None) -> None:
    config = AllocatorConfig(max_edits=most, reserve=seed)
    scores = scores_for(window, seed, targets)
    plan = GreedyAllocator(config).plan(window, scores)
    after = apply_all(plan.edits, window)
    invariants.check_window(after)
    assert after.cost == plan.cost
    least = WorkingContext.coarsest(window.timeline, 10**6, window.recent, window.vectors).cost
    assert after.cost <= max(window.budget - seed, least)
    chosen = [d for d in plan.decisions if d.chosen]
    assert tuple(d.edit for d in chosen) == plan.edits
    assert sum(d.cost for d in chosen) == plan.cost - window.cost
    forced = [d for d in chosen if "makes room" in d.reason]
    assert most is None or len(chosen) - len(forced) <= most
    assert all(d.reason for d in plan.decisions)
    again = GreedyAllocator(config).plan(window, scores)
    assert again.edits == plan.edits and again.decisions == plan.decisions


@STEADY
@given(windows(), st.integers(0, 99))
def test_two_steps_never_reverse_each_other_within_the_cooldown(window: WorkingContext, seed: int) -> None:
    history, greedy = EditHistory(), allocator(max_edits=None)
    done: list[tuple[object, ...]] = []
    for step in range(3):
        plan = greedy.plan(window, scores_for(window, seed + step, 3), history)
        for edit in plan.edits:
            assert all(inverse(edit) not in past for past in done[-2:])
        done.append(plan.edits)
        history = history.record(plan.edits)
        window = apply_all(plan.edits, window)


def test_best_first_until_the_budget_is_exactly_full() -> None:
    window = flat([1] * 6, 6 + 2 * 31)
    plan = allocator().plan(window, FocusScores([0.3, 0.9, 0.5, 0.1, 0.8, 0.7]))
    assert plan.edits == (Expand(1, 1), Expand(1, 4))
    assert plan.cost == window.budget
    why = reasons(plan)
    assert why[Expand(1, 5)].startswith("over budget") and why[Expand(1, 3)] == "below threshold"
    one_less = flat([1] * 6, 6 + 2 * 31 - 1)
    assert len(allocator().plan(one_less, FocusScores([0.3, 0.9, 0.5, 0.1, 0.8, 0.7])).edits) == 1


def test_thresholds_are_strict() -> None:
    window = flat([1, 1, 0, 0], 999)
    scores = FocusScores([0.5, 0.51, -0.5, -0.51])
    plan = allocator(expand_threshold=0.5, collapse_threshold=0.5).plan(window, scores)
    assert set(plan.edits) == {Expand(1, 1), Collapse(1, 3)}


def test_newer_expands_first_and_older_collapses_first_on_ties() -> None:
    window = flat([1, 1, 1, 0, 0, 0], 999)
    scores = FocusScores([0.5, 0.5, 0.5, -0.5, -0.5, -0.5])
    plan = allocator(max_edits=None).plan(window, scores)
    assert plan.edits == (
        *map(lambda i: Collapse(1, i), (3, 4, 5)),
        Expand(1, 2),
        Expand(1, 1),
        Expand(1, 0),
    )


def test_the_edit_limit_counts_payers() -> None:
    window = flat([0, 0, 0, 1, 1, 1], 99)
    plan = allocator(max_edits=4).plan(window, FocusScores([0, 0.1, 0, 0.9, 0.8, 0.7]))
    assert plan.edits == (Collapse(1, 0), Expand(1, 3), Collapse(1, 2), Expand(1, 4))
    assert reasons(plan)[Expand(1, 5)].startswith("edit limit")
    assert reasons(plan)[Collapse(1, 0)].startswith("pays")
    assert allocator(max_edits=0).plan(window, FocusScores([0, 0, 0, 1, 1, 1])).edits == ()


def test_collapses_pay_only_for_what_scores_higher() -> None:
    window = flat([0, 1], 33)
    assert allocator().plan(window, FocusScores([0.4, 0.5])).edits == (Collapse(1, 0), Expand(1, 1))
    refused = allocator().plan(window, FocusScores([0.5, 0.5]))
    assert refused.edits == () and reasons(refused)[Expand(1, 1)].startswith("no better path")


def test_a_family_pays_with_its_mean() -> None:
    window = apply_all([Expand(2, 1)], WorkingContext.coarsest(Timeline(67), 200, 96))
    scores = np.zeros(len(window))
    scores[0] = 0.9  # the other LOD2
    scores[1:33] = 0.5
    tight = WorkingContext(window.timeline, window.lod, window.index, window.cost, window.recent)
    assert allocator().plan(tight, FocusScores(scores)).edits == (Collapse(2, 1), Expand(2, 0))
    scores[1:33] = 0.95
    assert allocator(expand_threshold=0.96).plan(tight, FocusScores(scores)).edits == ()


def test_cooldown_ends() -> None:
    window = flat([0, 1], 999)
    scores = FocusScores([-0.9, 0.9])
    history = EditHistory().record([Expand(1, 0), Collapse(1, 1)])
    for _ in range(2):
        plan = allocator(cooldown=2).plan(window, scores, history)
        assert plan.edits == ()
        assert reasons(plan)[Expand(1, 1)].startswith("cooldown")
        assert reasons(plan)[Collapse(1, 0)].startswith("cooldown")
        history = history.record([])
    assert len(allocator(cooldown=2).plan(window, scores, history).edits) == 2
    assert allocator(cooldown=0).plan(window, scores, EditHistory().record([Expand(1, 0)])).edits


def test_a_family_in_cooldown_does_not_pay() -> None:
    history = EditHistory().record([Expand(1, 0)])
    plan = allocator().plan(flat([0, 1], 33), FocusScores([0, 0.9]), history)
    assert plan.edits == () and reasons(plan)[Expand(1, 1)].startswith("over budget")


def test_the_reserve_is_kept_and_restored() -> None:
    window = flat([0, 0, 1], 65 + 31)
    assert allocator(reserve=0).plan(window, FocusScores([0, 0, 0.9])).edits == (Expand(1, 2),)
    paid = allocator(reserve=32).plan(window, FocusScores([0.1, 0, 0.9]))
    assert paid.edits == (Collapse(1, 1), Collapse(1, 0), Expand(1, 2)) and paid.cost == 34
    assert "makes room" in reasons(paid)[Collapse(1, 1)]


def test_protected_tail_and_leaves_are_explained() -> None:
    window = flat([1, 0, 0], 999, recent=32)
    why = reasons(allocator().plan(window, FocusScores([0, 0.9, -0.9])))
    assert why[Collapse(1, 2)] == "protected tail"
    assert why[Expand(0, 1)].startswith("cannot expand further")


def deep(budget: int) -> WorkingContext:
    return WorkingContext.coarsest(Timeline(1024 * 2 + 4), budget, 128)


def test_targets_open_a_path() -> None:
    window = deep(400)
    plan = allocator().plan(window, FocusScores.zeros(window, Targets([70], [0.5])))
    assert plan.edits == (Expand(3, 0), Expand(2, 2), Expand(1, 70))
    assert plan.cost - window.cost == 93
    assert "3 expansions that costs 93" in reasons(plan)[Expand(1, 70)]
    assert reasons(plan)[Expand(3, 0)].startswith("on the path")
    short = window.cost + 92
    refused = allocator().plan(deep(short), FocusScores.zeros(window, Targets([70], [0.5])))
    decision = next(d for d in refused.decisions if d.edit == Expand(1, 70))
    assert refused.edits == () and decision.cost == 93 and decision.reason.startswith("over budget")


def test_targets_share_a_path() -> None:
    window = deep(130 + 93 + 31)
    targets = Targets([70, 71, 1500], [0.5, 0.4, 0.45])
    plan = allocator(max_edits=None).plan(window, FocusScores.zeros(window, targets))
    assert plan.edits == (Expand(3, 0), Expand(2, 2), Expand(1, 70), Expand(1, 71))


def test_a_path_longer_than_the_limit_is_finished_by_the_next_refocus() -> None:
    window, targets, history = deep(400), Targets([70], [0.5]), EditHistory()
    steps = []
    for _ in range(2):
        plan = allocator(max_edits=2).plan(window, FocusScores.zeros(window, targets), history)
        window, history = apply_all(plan.edits, window), history.record(plan.edits)
        steps.append(plan)
    assert steps[0].edits == (Expand(3, 0), Expand(2, 2)) and steps[1].edits == (Expand(1, 70),)
    assert "2 of 3 steps taken" in reasons(steps[0])[Expand(1, 70)]


def test_targets_keep_raw_blocks_and_ignore_dead_ones() -> None:
    window = flat([0, 1], 33)
    kept = allocator().plan(window, FocusScores([-0.9, 0.5], Targets([0], [0.6])))
    assert kept.edits == ()
    timeline = Timeline(3, 0, ((1, 2),))
    dead = WorkingContext.coarsest(timeline, 99, 0)
    plan = allocator().plan(dead, FocusScores.zeros(dead, Targets([1], [0.9])))
    assert plan.edits == () and reasons(plan)[Expand(1, 1)] == "the block is dead"


def test_a_target_beats_the_collapse_of_its_family() -> None:
    window = apply_all([Expand(3, 0)], deep(400))
    scores = np.where(window.lod == 2, -0.4, 0.0)
    targets = Targets([70], [0.6])
    plan = allocator().plan(window, FocusScores(scores, targets))
    assert Expand(1, 70) in plan.edits and Collapse(3, 0) not in plan.edits


def opened_before() -> WorkingContext:
    """A full window: two LOD2 nodes, the first one opened down to one raw block."""
    opened = apply_all([Expand(2, 0), Expand(1, 7)], WorkingContext.coarsest(Timeline(64), 200, 0))
    return WorkingContext(opened.timeline, opened.lod, opened.index, opened.cost, 0)


def test_collapses_can_pay_over_several_levels() -> None:
    """A path costs 62; the raw block frees 31, and only then the family around it is whole."""
    window = opened_before()
    scores = FocusScores.zeros(window, Targets([40, 41], [0.9, 0.1]))
    plan = allocator().plan(window, scores)
    assert plan.edits == (Collapse(1, 7), Collapse(2, 0), Expand(2, 1), Expand(1, 40))
    assert plan.cost == window.cost
    kept = FocusScores(np.where(window.lod == 2, 0.0, 0.5), Targets([40], [0.9]))
    assert reasons(allocator().plan(window, kept))[Expand(1, 40)].startswith("no better path")
    history = EditHistory().record([Expand(1, 7)])
    refused = allocator().plan(window, scores, history)
    assert refused.edits == () and reasons(refused)[Expand(1, 40)].startswith("over budget")


def test_deep_payments_go_on_in_the_next_refocus() -> None:
    window, history = opened_before(), EditHistory()
    taken: list[object] = []
    for _ in range(5):
        scores = FocusScores.zeros(window, Targets([40], [0.9]))
        plan = allocator(max_edits=1).plan(window, scores, history)
        window, history = apply_all(plan.edits, window), history.record(plan.edits)
        taken += plan.edits
    assert taken == [Collapse(1, 7), Expand(2, 1), Collapse(2, 0), Expand(1, 40)]
    assert window.find(0, 40) is not None


@pytest.mark.parametrize("seed", range(5))
def test_greedy_reaches_a_fair_share_of_the_exact_gain(seed: int) -> None:
    window = flat([1] * 30 + [0] * 8, 30 + 8 * 32)
    scores = scores_for(window, seed)
    exact = ExactAllocator(ExactConfig(reserve=0)).plan(window, scores)
    greedy = allocator(max_edits=None, expand_threshold=0, collapse_threshold=0).plan(window, scores)
    best, got = (objective(window, apply_all(p.edits, window), scores) for p in (exact, greedy))
    assert 0.9 * best <= got <= best + 1e-9


@pytest.mark.parametrize("sign", [1, -1])
def test_a_wrong_sign_is_caught(sign: int) -> None:
    """A planted task: blocks 3, 9 and 14 hold what is needed, 20 and 21 hold nothing, yet are raw."""
    lods = [1] * 20 + [0, 0]
    window = flat(lods, 20 + 64)
    truth = np.full(22, -0.3)
    truth[[3, 9, 14]] = 0.8
    after = window
    history = EditHistory()
    for _ in range(4):
        here = truth[after.index]
        plan = allocator().plan(after, FocusScores(sign * here), history)
        after, history = apply_all(plan.edits, after), history.record(plan.edits)
    planted = sum(after.find(0, block) is not None for block in (3, 9, 14))
    assert planted == (2 if sign > 0 else 0)


def test_configs_and_scores_are_checked() -> None:
    with pytest.raises(ConfigError, match="cooldown"):
        AllocatorConfig(cooldown=-1)
    with pytest.raises(ConfigError, match="threshold"):
        AllocatorConfig(expand_threshold=float("nan"))
    with pytest.raises(ConfigError):
        ExactConfig(reserve=-1)
    assert AllocatorConfig().unlimited().max_edits is None
    window = flat([1, 1], 99)
    for make in (
        lambda: allocator().plan(window, FocusScores([0.1])),
        lambda: allocator().plan(window, FocusScores([0, 0], Targets([2], [1.0]))),
        lambda: FocusScores([np.nan]),
        lambda: FocusScores([[0.0]]),
        lambda: Targets([1], [0.1, 0.2]),
        lambda: Targets([-1], [0.1]),
    ):
        with pytest.raises(InvalidInput):
            make()


def test_history_forgets_and_counts() -> None:
    history = EditHistory()
    for step in range(200):
        history = history.record([Expand(1, step)])
    assert history.step == 200 and len(history.records) == 64
    assert history.blocked(2) == {Collapse(1, 198), Collapse(1, 199)}
    assert history.blocked(0) == frozenset()


def test_an_empty_window_has_an_empty_plan() -> None:
    window = WorkingContext.coarsest(Timeline(0, 7), 99, 0)
    plan = GreedyAllocator().plan(window, FocusScores.zeros(window))
    assert plan.edits == () and plan.decisions == () and plan.cost == 7


def test_a_denied_target_is_refused_without_touching_what_surrounds_it() -> None:
    window = WorkingContext.coarsest(Timeline(64).deny([(3, 5)]).kill(40, 41).prune([(44, 46)]), 1000, 0)
    scores = FocusScores.zeros(window, Targets([3, 40, 44, 50], [0.9, 0.9, 0.9, 0.9]))
    plan = GreedyAllocator().plan(window, scores)
    assert plan.edits == (Expand(2, 1), Expand(1, 50))
    reasons = {d.edit: d.reason for d in plan.decisions if not d.chosen}
    assert "denied" in reasons[Expand(1, 3)] and "dead" in reasons[Expand(1, 40)] and "pruned" in reasons[Expand(1, 44)]


def test_a_pruned_block_stays_a_gist_however_well_it_scores() -> None:
    window = WorkingContext.coarsest(Timeline(40).prune([(33, 35), (39, 40)]), 1000, 64)
    assert (window.lod[-2:].tolist(), window.index[-2:].tolist()) == ([0, 1], [38, 39])
    plan = GreedyAllocator().plan(window, FocusScores(np.ones(len(window), np.float32)))
    after = apply_all(plan.edits, window)
    raw = set(after.index[after.lod == 0].tolist())
    assert {32, 35, 38} <= raw and not {33, 34, 39} & raw
    reasons = {d.edit: d.reason for d in plan.decisions if not d.chosen}
    assert "restore" in reasons[Expand(1, 33)]
    with pytest.raises(EditError, match="restore"):
        apply(Expand(1, 39), window)


def test_a_swap_must_gain_more_than_the_margin() -> None:
    window = flat([0, 1], 33)
    close, clear = FocusScores([0.4, 0.45]), FocusScores([0.4, 0.55])
    assert allocator(swap_margin=0.1).plan(window, close).edits == ()
    assert allocator(swap_margin=0.1).plan(window, clear).edits == (Collapse(1, 0), Expand(1, 1))
    assert allocator(swap_margin=0.1).plan(flat([0, 1], 64), close).edits == (Expand(1, 1),)
    with pytest.raises(ConfigError, match="swap_margin"):
        AllocatorConfig(swap_margin=-0.1)
