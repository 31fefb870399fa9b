"""megacontext generate: text that continues a prompt, with the memory at hand."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.layers import tell_behind
from megacontext.cli.sessions import Budget, Focus, Policy, opened, window_facts
from megacontext.cli.text import given_text
from megacontext.cli.verb import Call, Model

if TYPE_CHECKING:
    from megacontext.engine.events import Event
    from megacontext.engine.profile import Profile
    from megacontext.engine.sampling import SamplingConfig
    from megacontext.engine.session import Session


def generate(
    call: Call,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="[PROMPT]",
            help="What to continue; '-' is standard input. Without it: the end of the memory, or of the session.",
        ),
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Stop after N tokens.")] = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", min=0, help="0 always takes the likeliest token; 1 draws as the model thinks.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the likeliest tokens that make up this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed draws the same text.")] = 0,
    budget: Budget = None,
    policy: Focus = Policy.auto,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keep the conversation on the branch sessions/NAME, or continue the one that is there. Without it, the "
            "memory stays as it was.",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an event log of the window and its focus; see megacontext replay."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time of a token goes.")] = False,
    model: Model = None,
) -> None:
    """Generate text with the memory, printed as it comes.

    The window follows: while text is written, what becomes relevant is brought into focus.
    """
    from megacontext.engine.events import each_of
    from megacontext.engine.recording import Recorder
    from megacontext.engine.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=temperature, top_p=top_p, seed=seed)
    memory = call.ready(model)
    text = given_text(prompt)
    count, parts = _Count(), None
    if profile:
        from megacontext.engine.profile import Profile

        parts = Profile()
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder.to(record)) if record is not None else None
        listener = count if recorder is None else each_of(count, recorder)
        live = stack.enter_context(opened(memory, budget=budget, policy=policy, name=session, listener=listener))
        if recorder is not None:
            recorder.begin(live, prompt=text)
        started = time.perf_counter()
        answer = _written(live, text, max_new_tokens, sampling, call, parts)
        seconds = time.perf_counter() - started
        commit = live.commit("generate", author=author()) if session is not None else None
        if commit is not None:
            tell_behind(memory.layers(live.branch))
        value: dict[str, Any] = {
            "text": answer,
            "tokens": count.tokens,
            "seconds": round(seconds, 3),
            "refocus_steps": count.refocuses,
            "policy": live.policy.name,
            "session": session,
            "branch": live.branch if session is not None else None,
            "commit": commit,
            "window": window_facts(live.window),
            "cache": {"forwarded": live.cache_stats.forwarded, "reused": live.cache_stats.reused},
            "missing": list(memory.bundle.missing),
            **({"ms_per_token": parts.ms_per_token()} if parts is not None else {}),
        }
        if record is not None:
            value["recording"] = str(record)
    call.show(value, lambda: _told(answer, parts))


class _Count:
    """A listener that counts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.refocuses = 0

    def __call__(self, event: Event) -> None:
        from megacontext.engine.events import Refocused, TokenDecoded

        self.tokens += isinstance(event, TokenDecoded)
        self.refocuses += isinstance(event, Refocused)


def _written(live: Session, prompt: str, limit: int, sampling: SamplingConfig, call: Call, profile: Profile | None) -> str:
    pieces = []
    if profile is None:
        found = live.generate(prompt, max_new_tokens=limit, sampling=sampling)
    else:
        found = profile.pieces(live, live.begin_turn(prompt, max_new_tokens=limit, sampling=sampling))
    for piece in found:
        pieces.append(piece)
        if not call.json:
            output.piece(piece)
    return "".join(pieces)


def _told(answer: str, profile: Profile | None) -> None:
    """The end of the line, and where the time went."""
    if answer and not answer.endswith("\n"):
        output.line()
    if profile is not None:
        from megacontext.engine.profile import PARTS

        spent = profile.ms_per_token()
        output.table(
            ("part", "ms per token", ""), [(part, f"{spent[part]:.3f}", PARTS[part]) for part in PARTS], right=("ms per token",)
        )
