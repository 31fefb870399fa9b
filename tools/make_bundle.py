"""Put the trained parts together as the checkpoint that ships, with a model card made from its result file.

    python -m tools.make_bundle --base runs/native_far/model/base --gistnet runs/native_far/model/gistnet \\
        --lensnet runs/lens/model --quality benchmarks/quality.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from megacontext.engine.bundle import bundled_folder, load_bundle
from megacontext.evaluation.tables import quality_markdown
from megacontext.models import GistEncoder

CARD = """---
license: apache-2.0
library_name: megacontext
tags: [memory, long-context, gist]
---
# {name}: the checkpoint that ships with MegaContext

A base language model for Python code ({parameters:,} parameters, {family}, {context:,} positions), a GistNet ({gists}) and
a LensNet, trained on two CPU cores from scratch on the Python standard library
and installed packages, de-duplicated and split by whole package. Fit for showing and testing a memory, not for writing
software. How it was made: `docs/training.md` and the configurations under `configs/`.

## Measured
{items} items from held-out packages of the standard library (no training saw them, the tokenizer's included): {far}
tokens of far context, {tail} of raw tail, the next {horizon} scored; the arms that choose are renewed every {renewal}
tokens. Recovered: 0 = no better than dropping the far context, 1 = as good as reading all of it. Far-copy tokens occur
in the far context and not in the tail. Forwards: slots through the base per scored token, its cache kept up to the first
slot that changed. Intervals: 95 %, paired bootstrap; resampled by {resampled_by} ({documents} of them).

{table}
"""


def _gists(encoder: GistEncoder | None) -> str:
    if encoder is None or encoder.layout is None:
        return "32 tokens → one input embedding, every level"
    layout = encoder.layout
    heads = len(layout.heads)
    return f"32 tokens → keys and values of {layout.entries} of them in {heads} heads that look things up, every level"


def main() -> None:
    """Copy the parts, check that they fit together, write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part in ("base", "gistnet", "lensnet"):
        parser.add_argument(f"--{part}", type=Path, help=f"folder of the {part}")
    parser.add_argument("--quality", type=Path, help="result of megacontext bench quality")
    arguments = parser.parse_args()
    folder = bundled_folder()
    for part in ("base", "gistnet", "lensnet"):
        source = getattr(arguments, part)
        if source is not None:
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(source, folder / part)
    bundle = load_bundle(folder)
    if arguments.quality is not None:
        result = json.loads(arguments.quality.read_text())
        card = CARD.format(
            name=folder.name,
            parameters=sum(p.numel() for p in bundle.base.model.parameters()),
            family=bundle.base.family,
            context=bundle.base.context_length,
            gists=_gists(bundle.gists),
            table=quality_markdown(result),
            **{
                key: result["config"][key]
                for key in ("items", "far", "tail", "horizon", "renewal", "resampled_by", "documents")
            },
        )
        (folder / "README.md").write_text(card)
    parts = [name for name, part in (("gistnet", bundle.gists), ("lensnet", bundle.lens)) if part is not None]
    print(f"{folder.name}: base {bundle.base.fingerprint[:12]} with {', '.join(parts) or 'nothing else'}")


if __name__ == "__main__":
    main()
