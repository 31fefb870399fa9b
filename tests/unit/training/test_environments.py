"""Python environments: standard library and site-packages are found from the folder alone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from megacontext.errors import DatasetError
from megacontext.training.corpus import CorpusConfig, collect
from megacontext.training.environments import environment_roots


def test_this_interpreters_environment_is_what_sysconfig_says() -> None:
    paths = sysconfig.get_paths()
    assert environment_roots(Path(sys.prefix)) == (Path(paths["stdlib"]), Path(paths["purelib"]))


def test_a_virtual_environment_has_the_library_of_the_python_that_made_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    for name in (tmp_path / "env", tmp_path / "env" / "bin" / "python"):
        stdlib, packages = environment_roots(name)
        assert stdlib == Path(sysconfig.get_paths()["stdlib"])
        assert packages.is_relative_to(tmp_path / "env") and packages.name == "site-packages"


def test_its_packages_keep_their_origin(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "python3.12"
    for name in ("os.py", "asyncio/run.py", "site-packages/numbers/core.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"name = {name!r}\n" * 30)
    roots = tuple(map(str, environment_roots(tmp_path)))
    found = {file.package: file.name for file in collect(CorpusConfig(roots=roots))}
    assert found == {
        "stdlib/asyncio": "stdlib/asyncio/run.py",
        "stdlib/os": "stdlib/os.py",
        "site-packages/numbers": "site-packages/numbers/core.py",
    }


def test_what_is_no_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder: name a Python environment"):
        environment_roots(tmp_path / "absent")
    with pytest.raises(DatasetError, match="holds no Python environment"):
        environment_roots(tmp_path)
