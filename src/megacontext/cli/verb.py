"""What all verbs share: `-C DIR`, `--json`, examples below their help, and errors as one line.

A verb is a function of a `Call` and of what typer makes of its other parameters. It raises typed errors and
returns an exit code, or None for 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer

from megacontext.cli import failures, output, place

if TYPE_CHECKING:
    from megacontext.engine.memory import Memory

Directory = Annotated[Path | None, typer.Option("-C", metavar="DIR", help="The memory's folder; see megacontext --help.")]
Deny = Annotated[
    list[str] | None,
    typer.Option("--deny", metavar="LABEL", help="See nothing that carries this label; repeatable. See megacontext --help."),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout; all else goes to stderr.")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Use this model instead of the one that the memory was made for: 'bundled', a folder, or a hub id. "
        "Its tokenizer must be the same; the gists of another GistNet are laid by megacontext regist.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a verb was called: which memory is named, and for whom the output is."""

    directory: Path | None
    json: bool
    deny: tuple[str, ...] = ()

    def memory(self, model: str | None = None) -> Memory:
        """The memory that the command is about. InvalidInput for a label in --deny that nothing carries."""
        from megacontext.engine.memory import Memory

        memory = Memory.open(place.find_memory(self.directory), model=model, deny=place.denied(self.deny))
        place.check_labels(memory.repository, self.deny)
        return memory

    def ready(self, model: str | None = None) -> Memory:
        """The same with its models loaded, and what these have to do without told on stderr."""
        memory = self.memory(model)
        quiet_loading(memory.model)
        for lack in memory.bundle.missing:
            output.warning(f"note: {lack}")
        return memory

    def show(self, value: dict[str, Any], human: Callable[[], None]) -> None:
        """The result: `value` for programs, or what `human` prints."""
        if self.json:
            output.document(value)
        else:
            human()


def quiet_loading(model: str) -> None:
    """No progress bars of transformers for files that are here already; a download does show some."""
    if model == "bundled" or Path(model).is_dir():
        from transformers.utils import logging

        logging.disable_progress_bar()


def verb(
    app: typer.Typer, name: str, *examples: str, reads: bool = True
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function as a command; its docstring is the help text, `examples` follow it. One that `reads` no documents
    takes no --deny."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        command = _command(name, function, reads)
        title = "Examples:" if len(examples) > 1 else "Example:"
        app.command(name, help=paragraphs(function.__doc__), epilog="\n\n".join((title, *examples)))(command)
        return command

    return register


def refuse_deny(name: str) -> NoReturn:
    """Raises a usage error for --deny with a command that could not heed it."""
    raise typer.BadParameter(f"{name} shows no documents that could be held back, so it takes no --deny", param_hint="--deny")


def paragraphs(text: str | None) -> str:
    """A text whose only line breaks are those between paragraphs, so that it fits any terminal."""
    return "\n\n".join(" ".join(each.split()) for each in (text or "").split("\n\n"))


def _command(name: str, function: Callable[..., int | None], reads: bool) -> Callable[..., None]:
    """`function` as typer sees it: its first parameter replaced by the shared options."""
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]

    def command(ctx: typer.Context, **values: Any) -> None:
        directory, deny = ctx.find_root().obj or (None, ())
        if deny and not reads:
            refuse_deny(name)
        denied = (*deny, *(values.pop("deny_", None) or ()))
        call = Call(directory=values.pop("directory_") or directory, deny=denied, json=values.pop("json_"))
        try:
            code = function(call, **values)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            code = failures.report(error, as_json=call.json)
        raise typer.Exit(code or 0)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    parameters += [each.replace(kind=keyword, annotation=hints[each.name]) for each in own]
    parameters += [
        inspect.Parameter("directory_", keyword, default=None, annotation=Directory),
        *([inspect.Parameter("deny_", keyword, default=None, annotation=Deny)] if reads else []),
        inspect.Parameter("json_", keyword, default=False, annotation=Json),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__name__ = function.__name__
    return command
