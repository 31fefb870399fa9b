"""Arrows point one way, and importing the package is quick and light."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import megacontext

ROOT = Path(__file__).parents[2]
# In seconds of processor time, so that a busy machine does not fail the test. The target is 0.2 on an idle one.
IMPORT_LIMIT = 0.2


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def test_the_public_names_are_sorted_and_all_resolve() -> None:
    assert megacontext.__all__ == sorted(megacontext.__all__)
    assert dir(megacontext) == megacontext.__all__
    assert all(getattr(megacontext, name) is not None for name in megacontext.__all__)


def test_the_public_names_are_these() -> None:
    """Adding one is a decision; so is removing one."""
    names = ["MegaContextError", "Memory", "Scheduler", "Session", "SessionConfig", "__version__", "init", "open"]
    assert megacontext.__all__ == names


def test_importing_is_fast() -> None:
    code = "import time; t = time.process_time(); import megacontext; print(time.process_time() - t)"
    assert statistics.median(float(python(code)) for _ in range(3)) < IMPORT_LIMIT


def test_importing_and_opening_a_memory_load_no_tensor_library() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]"
    assert python(f"import sys, megacontext; print({heavy})") == "[]"
    code = "import sys, megacontext; megacontext.open, megacontext.Memory; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_nothing_shipped_imports_the_test_kit() -> None:
    shipped = [p for p in (ROOT / "src").rglob("*.py") if "testing" not in p.relative_to(ROOT / "src" / "megacontext").parts]
    shipped += list((ROOT / "tools").glob("*.py"))
    imports = re.compile(r"^\s*(from|import) megacontext\.testing", re.MULTILINE)
    assert [str(path) for path in shipped if imports.search(path.read_text())] == []
