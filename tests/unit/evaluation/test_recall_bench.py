"""``bench recall``: what cases look like, where their lines stand, how answers are judged, and a whole run on tiny models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.errors import ConfigError, DatasetError
from megacontext.evaluation.recall_bench import RecallConfig, run
from megacontext.evaluation.recall_bench.haystack import documents, planted, texts_of
from megacontext.evaluation.recall_bench.suite import grouped
from megacontext.evaluation.recall_bench.tables import memory_table, raw_rows
from megacontext.evaluation.recall_bench.tasks import TASKS, Case, draw_cases
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.testing.tiny_models import EOS, byte_tokenizer

TEXTS = [f"# file {n}\n" + "".join(f"x_{n}_{m} = {m}\n" for m in range(40)) for n in range(30)]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)


@pytest.mark.parametrize("task", TASKS)
def test_cases_are_seeded_and_hold_their_answers(task: str) -> None:
    tokenizer = byte_tokenizer()
    cases = draw_cases(task, 6, tokenizer, seed=1)
    assert cases == draw_cases(task, 6, tokenizer, seed=1) != draw_cases(task, 6, tokenizer, seed=2)
    told = [line for case in cases for line in case.told]
    for case in cases:
        assert all(any(answer.strip() in line for line in case.told) for answer in case.answers)
        # Nothing but a case's own lines tells its answer.
        others = [line for line in told if line not in case.told]
        assert not any(answer.strip() in line for answer in case.answers for line in others if len(answer.strip()) > 5)
        asked = case.asked + case.answers[0]
        if task in ("single_key", "multi_key"):
            assert sum(line.startswith(asked) for line in case.told) == 1


def test_only_the_whole_answer_is_right() -> None:
    case = Case(task="single_key", told=("\nimport a as brel\n",), asked="\nimport a as", answers=(" brel",))
    assert case.judge(" brel\nx") and case.judge(" brel") and case.judge(" brel,")
    assert not case.judge(" brelo\n") and not case.judge("brel") and not case.judge(" bre") and not case.judge("")
    several = Case(task="multi_value", told=(), asked="a =", answers=(" one", " two"))
    assert several.judge(" two\na = one") and not several.judge(" one\na = one")


@cache
def few_cases() -> list[Case]:
    return [case for task in TASKS for case in draw_cases(task, 2, byte_tokenizer(), 0)]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), newest=st.integers(1, 3000), files=st.integers(4, 30))
def test_needles_stand_whole_and_far_back(seed: int, newest: int, files: int) -> None:
    cases = few_cases()
    texts = TEXTS[:files]
    if sum(map(len, texts)) <= newest:
        with pytest.raises(DatasetError, match="no room"):
            planted(texts, cases, np.random.default_rng(seed), newest=newest)
        return
    found = planted(texts, cases, np.random.default_rng(seed), newest=newest)
    whole = "".join(found)
    added = sum(len(line.rstrip("\n")) for case in cases for line in case.told)
    assert len(whole) == sum(map(len, texts)) + added
    assert whole.endswith("".join(texts)[len("".join(texts)) - newest + 50 :]) or newest < 60
    for case in cases:
        assert all(line.rstrip("\n") in whole for line in case.told)
        if case.task == "variable_tracking":
            places = [whole.index(line.rstrip("\n")) for line in case.told]
            assert places == sorted(places)


def test_histories_are_as_long_as_asked_for() -> None:
    tokenizer = byte_tokenizer()
    rng = np.random.default_rng(0)
    chosen = documents(TEXTS, 3000, tokenizer, rng)
    assert sum(len(tokenizer(text)["input_ids"]) for text in chosen) == 3000
    with pytest.raises(DatasetError, match="add documents"):
        documents(TEXTS, 10**6, tokenizer, rng)


def test_documents_of_a_history_are_parted_where_they_end() -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer("a = 1\n")["input_ids"], EOS, *tokenizer("b = 2\n")["input_ids"], EOS]
    assert texts_of([np.array(ids)], EOS, tokenizer) == ["a = 1\n", "b = 2\n"]


def test_short_histories_share_the_needles_among_them() -> None:
    cases = {task: draw_cases(task, 8, byte_tokenizer(), 0) for task in ("single_key", "multi_key")}
    one, many = grouped(cases, 10**6), grouped(cases, 1500)
    assert len(one) == 1 and len(many) == 4
    for groups in (one, many):
        dealt = [case for group in groups for case in group["multi_key"]]
        assert sorted(case.asked for case in dealt) == sorted(case.asked for case in cases["multi_key"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(save_tiny_bundle(tmp_path_factory.mktemp("bundle")))


@contextmanager
def _stage(name: str, total: int) -> Iterator[Callable[[], None]]:
    left = [total]

    def advance() -> None:
        left[0] -= 1

    yield advance
    assert left[0] == 0, f"{name} counted {total - left[0]} of {total}"


def test_a_whole_run(bundle: Bundle, tmp_path: Path) -> None:
    histories = [np.array([*bundle.tokenizer(text)["input_ids"], EOS]) for text in TEXTS]
    config = RecallConfig(
        cases=2,
        lengths=(2560, 4096),
        windows=(256, 192),
        narrow=4096,
        policies=("lens", "recency"),
        tasks=("single_key", "frequent_words"),
        raw=300,
        everything=True,
    )
    found = run(bundle, histories, EOS, config, _stage)
    assert {record["task"] for record in found["raw"]} == set(config.tasks)
    keys = {(r["task"], r["history"], r["window"], r["arm"]) for r in found["tasks"]}
    assert len(keys) == len(found["tasks"]) == 2 * 2 * (1 + 2)
    for record in found["tasks"]:
        assert record["cases"] == 2 and 0 <= record["exact"] <= 1 and record["rank"] >= 1
        # Random weights cannot do it raw, so nothing is judged.
        assert record["judged"] is False and record["raw_exact"] < 0.8
    assert found["summary"] == {}
    back = json.loads(json.dumps(found, allow_nan=False))
    columns, rows = memory_table(back)
    assert columns[3:] == ("2,560 tokens", "4,096 tokens") and len(rows) == 2 * 2 * 2
    assert all("not judged" in row for row in raw_rows(back))
    assert run(bundle, histories, EOS, RecallConfig(cases=1, raw=300, tasks=("single_key",)), _stage)["tasks"] == []


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="one of single_key"):
        RecallConfig(tasks=("triple_key",))
    with pytest.raises(ConfigError, match="choose auto"):
        RecallConfig(policies=("psychic",))
    with pytest.raises(ConfigError, match="at least"):
        RecallConfig(lengths=(100,))
