from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.core import AllocatorConfig, invariants
from megacontext.engine.events import Event, Refocused, TokenDecoded
from megacontext.engine.kv_cache import WindowCache
from megacontext.engine.memory import Memory
from megacontext.engine.reuse import EXACT
from megacontext.engine.sampling import Sampler, SamplingConfig
from megacontext.engine.session import Session, SessionConfig
from megacontext.errors import BudgetError, ConfigError, ModelMismatch
from megacontext.models.positions import WindowRanks
from megacontext.testing.tiny_bundle import save_tiny_bundle

SAMPLED = SamplingConfig(temperature=1.0, seed=3)


def trace_of(memory: Memory, name: str, tokens: int = 60) -> tuple[list[object], str]:
    """Focus trace and text of a session."""
    seen: list[object] = []

    def listener(event: Event) -> None:
        if isinstance(event, Refocused):
            seen.append((event.step, event.result.plan.edits))
        elif isinstance(event, TokenDecoded):
            seen.append((event.token, event.cost))

    with memory.session(budget=256, name=name, listener=listener) as session:
        text = "".join(session.generate("def function_7(", max_new_tokens=tokens, sampling=SAMPLED, stop_at_eos=False))
    return seen, text


def test_same_seed_same_trace_and_output(memory: Memory) -> None:
    invariants.determinism(*(trace_of(memory, name)[0] for name in ("one", "two")))


def test_the_window_keeps_every_invariant_over_a_long_generation(memory: Memory) -> None:
    config = SessionConfig(budget=192, recent=32, refocus_every=8, allocator=AllocatorConfig(reserve=32))
    costs: list[int] = []

    def listener(event: Event) -> None:
        if isinstance(event, TokenDecoded):
            invariants.check_window(session.window)
            costs.append(event.cost)

    with memory.session(config=config, policy="random", listener=listener) as session:
        list(session.generate("x = ", max_new_tokens=250, sampling=SAMPLED, stop_at_eos=False))
    assert len(costs) == 250
    assert max(costs) <= 192


def test_what_is_decoded_is_in_the_branch_and_only_there(memory: Memory) -> None:
    before = memory.status()
    with memory.session(budget=256, name="kept") as session:
        text = "".join(session.generate("import os\n", max_new_tokens=40, sampling=SAMPLED))
        session.commit()
    snapshot = memory.snapshot("sessions/kept")
    document = list(snapshot.documents)[-1]
    assert memory.text(document, snapshot) == "import os\n" + text
    assert memory.status() == before
    with memory.session(budget=256, name="kept") as again:
        assert again.snapshot.cursor == snapshot.cursor
    memory.drop_session("sessions/kept")
    assert "sessions/kept" not in memory.repository.branches()


@pytest.mark.parametrize("kind", ["memory", "kv_memory"])
def test_cached_logits_equal_fresh_ones_through_edits(kind: str, request: pytest.FixtureRequest) -> None:
    memory: Memory = request.getfixturevalue(kind)
    config = SessionConfig(budget=256, recent=32, refocus_every=4, reuse=EXACT)
    with memory.session(config=config, policy="random") as session:
        session.append("def f(")
        for number in range(24):
            if number % 4 == 0:
                session.refocus(unlimited=number == 0)
            fresh = WindowCache(memory.bundle.base, memory.bundle.gists, WindowRanks()).read(session.slots())
            torch.testing.assert_close(session.logits(), fresh, atol=1e-4, rtol=1e-3)
            session.append_tokens(np.array([97 + number]))
        assert session.cache_stats.reused > session.cache_stats.forwarded


@pytest.mark.parametrize("kind", ["memory", "kv_memory"])
def test_gists_reach_the_logits(kind: str, request: pytest.FixtureRequest) -> None:
    memory: Memory = request.getfixturevalue(kind)
    with memory.session(budget=256) as session:
        session.append("def g(")
        true = session.logits()
        slots = session.slots()
        noise = slots.vectors[::-1] * 2
        changed = type(slots)(**{**vars(slots), "vectors": noise})
        other = WindowCache(memory.bundle.base, memory.bundle.gists, WindowRanks()).read(changed)
    assert float((true - other).abs().max()) > 1e-3


def test_several_sessions_in_one_process_do_not_see_each_other(memory: Memory) -> None:
    with memory.session(budget=256, name="a") as a, memory.session(budget=256, name="b") as b:
        a.append("secret = 'only in a'\n" * 4)
        b.append("other\n")
        assert len(a.snapshot.documents) == len(b.snapshot.documents)
        assert b.window.timeline.tokens < a.window.timeline.tokens
        assert "only in a" not in memory.text_of_blocks(b.snapshot, 0, b.snapshot.blocks)


@pytest.mark.parametrize("policy", ["auto", "hybrid", "lens", "suffix", "recency", "random", "retrieval"])
def test_every_policy_focuses_within_the_budget(memory: Memory, policy: str) -> None:
    with memory.session(budget=320, policy=policy) as session:  # type: ignore[arg-type]
        session.append("def function_40(a, b):\n    return a * 40 +")
        result = session.refocus(unlimited=True)
        assert session.window.cost <= 320
        assert len(session.explain()) == len(session.window)
        assert all(np.isfinite(result.scores.entries))


def test_retrieval_opens_the_block_that_holds_the_query(memory: Memory) -> None:
    with memory.session(budget=320, policy="retrieval") as session:
        session.append("def function_40(a, b):\n    return a * 40 +")
        view = session.view()
        blocks, scores = view.search(view.query[-32:], 4)
        assert scores[0] > 0
        result = session.refocus(unlimited=True)
        assert result.after.lod[result.after.covering(blocks[:1])].tolist() == [0]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_base_without_a_gistnet_works_and_says_so(tmp_path: Path, family: str) -> None:
    folder = save_tiny_bundle(tmp_path / "bundle", family, gistnet=False) / "base"
    memory = Memory.create(tmp_path / "m.mc", model=folder)
    memory.add(text="value = 1\n" * 200)
    assert len(memory.bundle.missing) == 2
    assert not memory.status().layers
    with memory.session(budget=256) as session:
        text = "".join(session.generate("value", max_new_tokens=40, sampling=SAMPLED))
    assert text


def test_a_short_conversation_is_no_part_of_the_document_before_it(memory: Memory) -> None:
    before = memory.text(memory.find_document("text:functions"))
    with memory.session(name="short") as session:
        session.append("hi")
    view = memory.snapshot("sessions/short")
    assert [memory.text(record, view) for record in view.documents.live()] == [before, "hi"]


def test_bad_budgets_are_refused_with_what_to_do(memory: Memory) -> None:
    with pytest.raises(BudgetError, match="raise the budget"):
        SessionConfig(budget=100, recent=128)
    with pytest.raises(BudgetError, match="lower the budget"):
        memory.session(budget=100_000)
    with pytest.raises(ConfigError, match="no focus policy"):
        memory.session(policy="nonsense")  # type: ignore[arg-type]
    assert memory.session(budget=256).window.cost <= 256


def test_a_memory_refuses_a_model_with_another_gistnet(memory: Memory, tmp_path: Path) -> None:
    other = save_tiny_bundle(tmp_path / "other", seed=5)
    reopened = Memory.open(memory.repository.root, model=other)
    with pytest.raises(ModelMismatch, match="another GistNet"):
        reopened.session()
    assert memory.status() == Memory.open(memory.repository.root).status()


def test_sampling_is_greedy_at_zero_and_reproducible_above() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9, -1.0])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert Sampler(SamplingConfig())(logits, nothing) == 1
    draws = [[Sampler(SAMPLED)(logits, nothing) for _ in range(5)] for _ in range(2)]
    assert draws[0] == draws[1]
    only = Sampler(SamplingConfig(temperature=1.0, top_p=0.01))
    assert {only(logits, nothing) for _ in range(20)} == {1}
    penal = Sampler(SamplingConfig(repetition_penalty=2.0))
    assert penal(logits, torch.tensor([1])) == 2


def test_empty_memory_and_no_prompt_is_a_clear_error(tmp_path: Path, tiny_bundle: Path) -> None:
    memory = Memory.create(tmp_path / "empty.mc", model=tiny_bundle)
    session: Session = memory.session(budget=256)
    with pytest.raises(ConfigError, match="nothing to continue"):
        next(session.generate(""))
