"""The entry point `megacontext`: all verbs, the options before them, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from megacontext import __version__
from megacontext.cli import failures, output, place
from megacontext.cli.add import add
from megacontext.cli.archive import export, import_
from megacontext.cli.audit import audit
from megacontext.cli.branch import branch, checkout
from megacontext.cli.convert import convert
from megacontext.cli.diff import diff
from megacontext.cli.env import env
from megacontext.cli.erase import erase
from megacontext.cli.explain import explain
from megacontext.cli.focus import focus
from megacontext.cli.fsck import fsck
from megacontext.cli.gc import gc
from megacontext.cli.generate import generate
from megacontext.cli.init import init
from megacontext.cli.label import label
from megacontext.cli.log import log
from megacontext.cli.merge import merge, revert
from megacontext.cli.migrate import migrate
from megacontext.cli.prune import prune, restore
from megacontext.cli.regist import regist
from megacontext.cli.repack import repack
from megacontext.cli.replay import replay
from megacontext.cli.rm import rm
from megacontext.cli.search import search
from megacontext.cli.show import show
from megacontext.cli.status import status
from megacontext.cli.tag import tag
from megacontext.cli.train import train
from megacontext.cli.verb import paragraphs, verb

HELP = """Virtual memory for language models.

A memory keeps everything that you add to it, in full and at several levels of detail. A language model reads it through
a small window that follows what matters.

First steps: megacontext init, then megacontext add FILES, then megacontext generate "…".

Results go to stdout, everything else to stderr. With --json, stdout holds exactly one JSON document, also where a
command fails: then it is an object whose "error" has "type" and "message".

Exit codes: 0 fine, 1 a check found something, 2 wrong usage or input, 3 a memory that is missing, damaged or locked,
4 a model that is missing, wrong or damaged, 70 a bug of ours, 130 interrupted. MEGACONTEXT_DEBUG=1 adds a traceback.
"""


# Commands that are about no memory.
ALONE = ("train", "bench", "demo")
# Verbs that would slow down all others: imported when they, or a list of all verbs, are asked for.
LATER = {"demo": "megacontext.cli.demo", "bench": "megacontext.cli.bench"}


class Root(TyperGroup):
    """The program: whatever leaves a command as an exception ends as a line on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, in the order in which a newcomer meets them."""
        return [*super().list_commands(ctx), *(name for name in LATER if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb, or None."""
        if cmd_name in LATER and cmd_name not in self.commands:
            self.commands[cmd_name] = _later(cmd_name)
        return super().get_command(ctx, cmd_name)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's `main`; standalone, it always raises SystemExit."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
        except (Exception, KeyboardInterrupt) as error:
            if not standalone_mode:
                raise
            code = _usage(error, words) if hasattr(error, "format_message") else failures.report(error, as_json=_json(words))
        if not standalone_mode:
            return code
        sys.exit(_flushed(code if isinstance(code, int) else 0))


def _later(name: str) -> Any:
    face = getattr(import_module(LATER[name]), name)
    alone = typer.Typer(add_completion=False)
    if isinstance(face, typer.Typer):
        # By name: in which order their modules were imported is nobody's affair.
        face.registered_commands.sort(key=lambda command: command.name or "")
        alone.add_typer(face, name=name)
    else:
        alone.command(name, epilog=f"Example:\n\nmegacontext {name}")(face)
    return get_group(alone).commands[name]


def _usage(error: Any, words: list[str]) -> int:
    """A command line that typer cannot make sense of."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        output.note(error.format_message())
        return failures.INPUT
    path = context.command_path if context is not None else "megacontext"
    message = f"{error.format_message().rstrip('.')} (see {path} --help)"
    taken = words[-1] if len(words) > 1 and words[-2] in ("-C", "--deny") else ""
    if context is not None and context.parent is None and taken in context.command.list_commands(context):
        message = (
            f"{words[-2]} took {taken!r} for its value, and no command is left: write megacontext {words[-2]} VALUE {taken}"
        )
    return failures.tell(message, "UsageError", failures.INPUT, as_json=_json(words))


def _json(words: list[str]) -> bool:
    return "--json" in words[: words.index("--") if "--" in words else None]


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        output.forget_stdout()
        return failures.PIPE
    return code


app = typer.Typer(
    name="megacontext",
    cls=Root,
    help=paragraphs(HELP),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        output.line(f"megacontext {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("-C", metavar="DIR", help=f"{place.RULE} May also follow the command.")
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option(
            "--deny",
            metavar="LABEL",
            help="See nothing that carries this label (megacontext label), in no form: repeatable, besides those that "
            f"${place.DENY} lists, divided by commas. Only ${place.DENY} may list what nothing carries yet. Of what writes, "
            "only sessions are open then. May also follow the command.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand in ALONE and (deny or directory):
        option = "--deny" if deny else "-C"
        raise typer.BadParameter(f"{ctx.invoked_subcommand} is about no memory, so it takes no {option}", param_hint=option)
    ctx.obj = directory, tuple(deny or ())


verb(app, "init", "megacontext init", "megacontext -C project.mc init --model HuggingFaceTB/SmolLM3-3B", reads=False)(init)
verb(app, "add", "megacontext add src/ README.md --tag code", "git log | megacontext add - --name history")(add)
verb(app, "rm", "megacontext rm src/old.py", "megacontext rm 'docs/*' --dry-run")(rm)
verb(
    app,
    "label",
    "megacontext label contracts/acme.txt --add confidential",
    "megacontext label notes.md:20-35 --add secret --remove draft",
    "megacontext --deny secret search password",
)(label)
verb(app, "status", "megacontext status", "megacontext -C project.mc status --json")(status)
verb(app, "log", "megacontext log -n 5", "megacontext log sessions/draft --documents 20")(log)
verb(
    app,
    "show",
    "megacontext show main",
    "megacontext show src/app.py > app.py",
    "megacontext show 2:5",
)(show)
verb(
    app,
    "search",
    'megacontext search "retry policy"',
    "megacontext search '\"def connect(\" timeout' --source '*.py'",
    'megacontext search "how are retries done" --mode hybrid --since 2026-01-01',
)(search)
verb(app, "focus", 'megacontext focus "def parse_args("', "tail -20 app.py | megacontext focus -")(focus)
verb(app, "explain", 'megacontext explain "def parse_args(" --policy retrieval')(explain)
verb(
    app,
    "generate",
    'megacontext generate "def parse_args(" --max-new-tokens 100',
    'megacontext generate "And then" --session story --temperature 0.8',
    'megacontext generate "def parse_args(" --record session.jsonl',
)(generate)
verb(app, "replay", "megacontext replay session.jsonl", "megacontext replay session.jsonl --steps", reads=False)(replay)
verb(app, "branch", "megacontext branch", "megacontext branch experiment", "megacontext branch -d experiment")(branch)
verb(app, "checkout", "megacontext checkout experiment", "megacontext checkout -b earlier 3fa9")(checkout)
verb(app, "tag", "megacontext tag", "megacontext tag v1", "megacontext tag -d v1", "megacontext tag --protect v1")(tag)
verb(app, "diff", "megacontext diff", "megacontext diff main experiment", "megacontext diff v1 --text notes.md")(diff)
verb(app, "merge", "megacontext merge experiment", "megacontext merge sessions/draft --both")(merge)
verb(app, "revert", "megacontext revert 3fa9")(revert)
verb(
    app,
    "convert",
    "megacontext convert ../other.mc --model models/other",
    "megacontext convert ../other.mc --model models/other --all --history",
)(convert)
verb(app, "regist", "megacontext regist --model runs/better", "megacontext regist --remove 3fa9")(regist)
verb(app, "repack", "megacontext repack", "megacontext repack --all --dry-run")(repack)
verb(app, "prune", "megacontext prune 'logs/*' --dry-run", "megacontext prune --before 2025-01-01 --yes")(prune)
verb(app, "restore", "megacontext restore", "megacontext restore logs/may.txt")(restore)
verb(
    app,
    "erase",
    "megacontext erase notes/private.md --dry-run",
    "megacontext erase --match '/AKIA[0-9A-Z]{16}/' --yes",
)(erase)
verb(app, "audit", "megacontext audit", "megacontext audit --verify --json", reads=False)(audit)
verb(app, "export", "megacontext export project.tar", "megacontext export --branches all --history - | zstd > all.tar.zst")(
    export
)
verb(
    app,
    "import",
    "megacontext import project.tar copy.mc",
    "megacontext -C project.mc import theirs.tar --as theirs",
    reads=False,
)(import_)
verb(app, "fsck", "megacontext fsck", reads=False)(fsck)
verb(app, "gc", "megacontext gc --dry-run", "megacontext gc", reads=False)(gc)
verb(app, "migrate", "megacontext migrate --dry-run", "megacontext migrate", reads=False)(migrate)
verb(app, "env", "megacontext env")(env)
app.add_typer(train, name="train")


def main() -> None:
    """Run the command line of this process."""
    output.never_fail_on_characters()
    app(prog_name="megacontext")


if __name__ == "__main__":
    main()
