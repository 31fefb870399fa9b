from __future__ import annotations

import re

import pytest
from core_strategies import STEADY, windows
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import (
    Collapse,
    Expand,
    Timeline,
    WorkingContext,
    apply,
    apply_all,
    between,
    cost_change,
    families,
    invariants,
    inverse,
    is_legal,
    legal_edits,
    why_illegal,
)
from megacontext.errors import EditError


@STEADY
@given(windows(), st.data())
def test_every_legal_edit_keeps_the_invariants_and_has_an_inverse(window: WorkingContext, data: st.DataObject) -> None:
    legal = legal_edits(window)
    if not legal:
        return
    edit = data.draw(st.sampled_from(legal))
    after = apply(edit, window)
    invariants.check_window(after)
    assert after.cost == window.cost + cost_change(edit, window) == int(after.costs.sum() + after.timeline.open_tokens)
    assert (
        after.first_blocks.tolist()
        == WorkingContext(
            after.timeline, after.lod, after.index, after.budget, after.recent, after.vectors
        ).first_blocks.tolist()
    )
    assert apply(inverse(edit), after) == window
    assert inverse(inverse(edit)) == edit


@STEADY
@given(windows(edits=4), st.data())
def test_legal_edits_are_exactly_those_that_apply(window: WorkingContext, data: st.DataObject) -> None:
    legal = set(legal_edits(window))
    kind = data.draw(st.sampled_from([Expand, Collapse]))
    edit = kind(data.draw(st.integers(0, 4)), data.draw(st.integers(-1, 100)))
    assert is_legal(edit, window) is (edit in legal)
    if edit not in legal:
        with pytest.raises(EditError, match=str(edit.index)):
            apply(edit, window)


@STEADY
@given(windows(), st.data())
def test_between_leads_from_any_window_to_any_other(window: WorkingContext, data: st.DataObject) -> None:
    other = window
    for _ in range(data.draw(st.integers(0, 6))):
        legal = legal_edits(other)
        if legal:
            other = apply(data.draw(st.sampled_from(legal)), other)
    assert apply_all(between(window, other), window) == other
    assert between(window, window) == ()


def test_between_refuses_other_timelines() -> None:
    with pytest.raises(EditError, match="one timeline"):
        between(WorkingContext.coarsest(Timeline(1), 99, 0), WorkingContext.coarsest(Timeline(2), 99, 0))


def test_reasons_name_the_entry() -> None:
    window = WorkingContext.coarsest(Timeline(70, 5), 200, 100)  # tail from block 67
    cases = {
        Expand(0, 68): "raw block 68 cannot expand further",
        Expand(1, 3): r"\(1, 3\) is not an entry",
        Expand(2, 0): None,
        Collapse(1, 66): "does not hold all",
        Collapse(1, 68): "protected tail, which starts at block 67",
        Collapse(2, 2): "not a complete node",
        Collapse(2, 0): "does not hold all 32 live children",
    }
    for edit, reason in cases.items():
        found = why_illegal(edit, window)
        assert (found is None) is (reason is None)
        if reason:
            assert re.search(reason, found or ""), found
    small = WorkingContext.coarsest(Timeline(70, 5), window.cost + 30, 100)
    assert "over budget: 30 of" in (why_illegal(Expand(2, 0), small) or "")


def test_families_are_complete_up_to_dead_children() -> None:
    timeline = Timeline(64, 0, ((3, 10), (32, 63)))
    window = WorkingContext.coarsest(timeline, 1000, 0)
    opened = apply_all([Expand(2, 0), Expand(2, 1)], window)
    assert len(opened) == 25 + 1
    found = families(opened)
    assert found.lod.tolist() == [2, 2] and found.count.tolist() == [25, 1]
    assert found.saving.tolist() == [24, 0]
    assert apply_all([Collapse(2, 1), Collapse(2, 0)], opened) == window


def test_nothing_collapses_into_what_holds_denied_blocks() -> None:
    window = WorkingContext.coarsest(Timeline(64).deny([(3, 5)]), 1000, 0)
    assert window.lod.tolist() == [1] * 30 + [2]
    assert window.index.tolist() == [0, 1, 2, *range(5, 32), 1]
    assert len(families(window)) == 0
    assert "(2, 0) holds blocks that are denied" in (why_illegal(Collapse(2, 0), window) or "")
    assert "denied" in (why_illegal(Collapse(1, 3), window) or "")
    assert "not an entry" in (why_illegal(Expand(2, 0), window) or "") and "not an entry" in (
        why_illegal(Expand(1, 3), window) or ""
    )
    opened = apply_all([Expand(1, 2), Expand(2, 1)], window)
    assert apply_all([Collapse(2, 1), Collapse(1, 2)], opened) == window
