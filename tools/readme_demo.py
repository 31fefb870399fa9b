"""Run the demo and put its real output between the markers of README.md.

python -m tools.readme_demo
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def main() -> None:
    """Replace what stands between the markers."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "megacontext.cli.main", "demo", "--dir", "demo.mc"]
        output = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    text = "\n".join(line.rstrip() for line in output.splitlines())
    block = f"{BEGIN}\n```text\n{text}\n```\n{END}"
    old = README.read_text()
    README.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, old, flags=re.DOTALL))


if __name__ == "__main__":
    main()
