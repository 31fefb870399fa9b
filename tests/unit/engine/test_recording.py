"""A recorded session gives back exactly the windows that were live."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacontext.core import WorkingContext
from megacontext.engine.events import Event, MadeRoom, Refocused, TokenDecoded, each_of
from megacontext.engine.memory import Memory
from megacontext.engine.recording import Frame, Recorder, frames, replay
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.session import SessionConfig
from megacontext.errors import CorruptObject, FormatVersionError, InvalidInput

pytestmark = pytest.mark.usefixtures("quick_disk")
KINDS = {Refocused: "refocus", MadeRoom: "room", TokenDecoded: "token"}


def recorded(
    memory: Memory, policy: str, config: SessionConfig, turns: list[str], tokens: int = 12
) -> tuple[str, list[tuple[str, WorkingContext]]]:
    """The log of a session, and its windows after every event."""
    live: list[tuple[str, WorkingContext]] = []
    out = io.StringIO()
    recorder = Recorder(out)

    def keep(event: Event) -> None:
        if type(event) in KINDS:
            live.append((KINDS[type(event)], session.window))

    session = memory.session(policy=policy, config=config, listener=each_of(recorder, keep))  # type: ignore[arg-type]
    sampling = SamplingConfig(temperature=1.0, seed=1)
    try:
        recorder.begin(session, prompt=turns[0])
        for turn in turns:
            list(session.generate(turn, max_new_tokens=tokens, sampling=sampling, stop_at_eos=False))
    finally:
        session.close()
        memory.drop_session(session.branch)
    return out.getvalue(), live


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    policy=st.sampled_from(["lens", "random", "recency", "retrieval"]),
    budget=st.sampled_from([144, 192, 320]),
    every=st.integers(1, 9),
    turns=st.lists(st.sampled_from(["def f(", "", "x = function_7(a, b)\n" * 8, "grüße 你好"]), min_size=1, max_size=3),
)
def test_a_replay_gives_the_windows_that_were_live(
    memory: Memory, policy: str, budget: int, every: int, turns: list[str]
) -> None:
    config = SessionConfig(budget=budget, recent=32, refocus_every=every)
    log, live = recorded(memory, policy, config, turns)
    replayed = [(frame.kind, frame.window) for frame in frames(io.StringIO(log)) if frame.kind in KINDS.values()]
    assert replayed == live


@pytest.fixture(scope="module")
def log(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    memory = Memory.open(shutil.copytree(filled, tmp_path_factory.mktemp("log") / "m.mc"))
    text, _ = recorded(memory, "random", SessionConfig(budget=192, recent=32, refocus_every=4), ["def g(", "again"], 24)
    return text


def of_kind(log: str, kind: str) -> list[Frame]:
    return [frame for frame in frames(io.StringIO(log)) if frame.kind == kind]


def test_scores_reasons_and_cache_are_in_the_log(log: str) -> None:
    focused = of_kind(log, "refocus")
    assert len(focused) >= 12 and [frame.record["step"] for frame in focused] == list(range(1, len(focused) + 1))
    for frame in focused:
        assert frame.before is not None and frame.scores is not None
        frame.scores.check(frame.before)
        chosen = [each for each in frame.record["decisions"] if each["chosen"]]
        assert len(chosen) == len(frame.record["edits"])
        assert frame.window.cost - frame.before.cost == sum(each["cost"] for each in chosen)
    assert any(frame.record["edits"] for frame in focused)
    spent = [frame.record["forwarded"] for frame in of_kind(log, "token")]
    assert spent == sorted(spent) and spent[-1] > spent[0] > 0


def test_a_log_that_says_otherwise_is_refused(log: str) -> None:
    lines = log.splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "refocus" and json.loads(line)["edits"])
    for change in ({"edits": []}, {"edits": [["expand", 9, 0]]}, {"scores": ["high"]}, {"event": "dance"}):
        changed = [*lines]
        changed[at] = json.dumps({**json.loads(lines[at]), **change}) + "\n"
        with pytest.raises(CorruptObject, match=f"line {at + 1}"):
            list(frames(changed))


def test_a_log_that_was_cut_off_ends_before_the_cut(log: str, tmp_path: Path) -> None:
    whole = len(list(frames(io.StringIO(log))))
    (tmp_path / "cut.jsonl").write_text(log[:-9], encoding="utf-8")
    assert len(list(replay(tmp_path / "cut.jsonl"))) == whole - 1


def test_what_is_no_recording_is_refused(log: str) -> None:
    for text in ("", "{}\n", "hello\n", "".join(log.splitlines(keepends=True)[1:])):
        with pytest.raises(InvalidInput, match="generate --record"):
            list(frames(io.StringIO(text), name="x"))
    newer = log.replace('"format":1', '"format":99', 1)
    with pytest.raises(FormatVersionError, match="upgrade"):
        list(frames(io.StringIO(newer)))
