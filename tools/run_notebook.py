"""Run a notebook from the top in a fresh kernel of this Python; fails where a cell does.

python -m tools.run_notebook notebooks/gistnet.ipynb --quick     # tiny setting, as CI does: nothing is written
python -m tools.run_notebook notebooks/gistnet.ipynb --write     # the whole, with its outputs put into the file
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before jupyter_core is loaded, which warns otherwise.
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

QUICK = "MEGACONTEXT_NOTEBOOK"
CELL_SECONDS, START_SECONDS = 900, 240
"""Generous: shared machines stall."""


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 where a cell raised: its traceback is on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebook", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebook", type=Path, help="such as notebooks/gistnet.ipynb")
    parser.add_argument("--quick", action="store_true", help=f"the tiny setting: the kernel sees {QUICK}=quick")
    parser.add_argument("--write", action="store_true", help="put the outputs into the notebook")
    args = parser.parse_args(argv)
    if args.quick and args.write:
        parser.error("figures of the tiny setting are for nobody to read: --write takes the whole")
    notebook = nbformat.read(args.notebook, as_version=4)  # type: ignore[no-untyped-call]
    try:
        execute(notebook, args.notebook.parent, quick=args.quick)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    if args.write:
        nbformat.write(tidy(notebook), args.notebook)  # type: ignore[no-untyped-call]
    print(f"{args.notebook.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells ran")
    return 0


def execute(notebook: Any, folder: Path, *, quick: bool) -> None:
    """Run all cells with ``folder`` as working directory; outputs go into ``notebook``. CellExecutionError."""
    os.environ[QUICK] = "quick" if quick else "whole"
    place = {"metadata": {"path": str(folder.resolve())}}
    with tempfile.TemporaryDirectory() as sockets:
        # Sockets in a folder: no ports, and no network to be missing.
        connection = str(Path(sockets) / "kernel.json")
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=connection)
        client = NotebookClient(notebook, km=manager, timeout=CELL_SECONDS, startup_timeout=START_SECONDS, resources=place)
        client.execute()


def tidy(notebook: Any) -> Any:
    """Without times, stderr and kernel versions, which say nothing and differ on every machine."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    sys.exit(main())
