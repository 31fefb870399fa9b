"""Write ``docs/poc_results.md`` with its curves, ``docs/storage.md`` and ``docs/focus.md`` from result files and templates.

    python -m tools.render_results            # write
    python -m tools.render_results --check    # fail if what is committed is not what the results give

Reads ``benchmarks/results/*.json`` (as ``megacontext bench … --json`` writes them) and ``benchmarks/results/runs/*.json`` (as
``tools.summarize_run`` does). Every figure of the page comes from one of them; what was not run is not there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megacontext.errors import MegaContextError
from tools.report import scaling, walkthrough
from tools.report.blocks import Blocks
from tools.report.files import Results, load_results
from tools.report.template import render

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, FIGURES = "benchmarks/results", "docs/poc_results.md", "docs/poc_results"
TEMPLATE = "docs/poc_results.template.md"
TEMPLATES = {PAGE: TEMPLATE, **{f"docs/{page}.md": f"docs/{page}.template.md" for page in ("performance", "storage", "focus")}}
MARK = "<!-- Rendered from {results}: edit {template}, then run python -m tools.render_results. -->\n"


def main(argv: list[str] | None = None) -> int:
    """Returns 0; 1 where ``--check`` finds a difference; 2 where a result or the template cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m tools.render_results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the committed page is another")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; this one unless told")
    args = parser.parse_args(argv)
    try:
        pages = render_pages(args.root)
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = sorted(set((args.root / FIGURES).glob("*.svg")) - {args.root / name for name in pages})
    if args.check:
        return _check(args.root, pages, stale)
    for name, text in pages.items():
        target = args.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"{name}: {len(text.encode()):,} bytes")
    for path in stale:
        path.unlink()
        print(f"{path.relative_to(args.root)}: removed")
    return 0


def render_pages(root: Path) -> dict[str, str]:
    """Path below ``root`` → text, of the pages and their curves. DatasetError and ConfigError say what cannot be used."""
    results = load_results(root / RESULTS)
    blocks = Blocks(results=results)
    data, pages = template_data(results) | {"session": walkthrough.load_sessions(root / RESULTS)}, {}
    for page, template in TEMPLATES.items():
        text = render((root / template).read_text(encoding="utf-8"), data, blocks.by_name())
        pages[page] = MARK.format(results=RESULTS, template=template) + text
    return {**pages, **{f"{FIGURES}/{name}": drawn for name, drawn in sorted(blocks.figures.items())}}


def template_data(results: Results) -> dict[str, Any]:
    """What placeholders may name: results by kind and name, groups of runs, and what scaling tells."""
    data: dict[str, Any] = {kind: dict(named) for kind, named in results.by_kind.items()}
    data["group"] = {str(run["group"]): True for run in results.of("run").values() if run["group"] not in ("", scaling.GROUP)}
    found = scaling.sizes(results.of("run").values())
    if found:
        data["scaling"] = _scaling_data(found)
    return data


def _scaling_data(found: list[scaling.Size]) -> dict[str, Any]:
    parameters = [size.parameters for size in found]
    data: dict[str, Any] = {
        "sizes": len(set(parameters)),
        "smallest": min(parameters),
        "largest": max(parameters),
        "reach": scaling.TARGETS[0] / max(parameters),
    }
    if any(scaling.fit(points, name) for points in scaling.by_arm(found).values() for name in scaling.FIGURES):
        data["laws"] = True
    tokens = [size.tokens for size in found if size.tokens is not None]
    if len(tokens) == len(found):
        data["tokens"] = {"least": min(tokens), "most": max(tokens)}
    return data


def _check(root: Path, pages: dict[str, str], stale: list[Path]) -> int:
    different = [str(path.relative_to(root)) + " (no longer rendered)" for path in stale]
    for name, text in pages.items():
        path = root / name
        if not path.is_file():
            different.append(f"{name} (missing)")
        elif path.read_text(encoding="utf-8") != text:
            different.append(name)
    if different:
        print(f"not what the results give: {', '.join(different)}; run python -m tools.render_results", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
