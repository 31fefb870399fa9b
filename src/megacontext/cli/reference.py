"""The whole command line as Markdown: `python -m megacontext.cli.reference > docs/cli.md`.

Made from the commands themselves; a test compares the page with them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from megacontext.cli.main import app

HEAD = """# Command line

<!-- Made by `python -m megacontext.cli.reference > docs/cli.md`; a test keeps it up to date. -->
"""


def reference() -> str:
    """The page."""
    return "\n".join((HEAD, *_command(typer.main.get_command(app), "megacontext", None, 2)))


def _command(command: Any, path: str, parent: Any, level: int) -> Iterator[str]:
    """A command and those below it; `level` is that of its heading."""
    context = command.make_context(path, [], parent=parent, resilient_parsing=True)
    parameters = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    children = list(command.list_commands(context)) if hasattr(command, "list_commands") else []
    yield f"{'#' * level} `{path}`\n"
    usage = [path, *(["[OPTIONS]"] if options else []), *map(_name, arguments), *(["COMMAND ..."] if children else [])]
    yield f"```text\n{' '.join(usage)}\n```\n"
    yield f"{(command.help or '').strip()}\n"
    rows = [f"| `{_cell(_name(each))}` | {_cell(_help(each))} |" for each in (*arguments, *options)]
    if rows:
        yield "\n".join(("| | |", "|---|---|", *rows)) + "\n"
    if examples := [each for each in (command.epilog or "").split("\n\n")[1:] if each]:
        yield "```sh\n" + "\n".join(examples) + "\n```\n"
    for name in children:
        yield from _command(command.get_command(context, name), f"{path} {name}", context, min(level + 1, 4))


def _name(parameter: Any) -> str:
    """As on the command line."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    flags = ", ".join(parameter.opts)
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return flags + value


def _help(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if default not in (None, False, "", ()) and not callable(default):
        text += f" Default: `{getattr(default, 'value', default)}`."
    return text + (" Required." if parameter.required and parameter.param_type_name == "option" else "")


def _cell(text: str) -> str:
    """A bar would end a cell of the table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference())
