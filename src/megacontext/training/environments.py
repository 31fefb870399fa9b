"""The source packages of a Python environment, found without running it."""

from __future__ import annotations

from pathlib import Path

from megacontext.errors import DatasetError
from megacontext.training.corpus import is_standard_library

_LIBRARIES = ("lib/python3*", "lib64/python3*", "Lib")


def environment_roots(environment: Path) -> tuple[Path, ...]:
    """The standard library and the ``site-packages`` of an environment: a virtual one, conda's, or an installed Python.

    ``environment`` is its folder or an interpreter in it. A virtual environment's standard library is that of the Python it
    was made from. DatasetError where neither is found.
    """
    folder = environment.absolute()
    if folder.is_file():  # bin/python, not resolved: a virtual environment's is a link into another one
        folder = folder.parent.parent
    if not folder.is_dir():
        raise DatasetError(f"{environment} is not a folder: name a Python environment, such as .venv")
    libraries = _libraries(folder)
    settings = _virtual_settings(folder)
    if "home" in settings:
        minor = ".".join((settings.get("version") or settings.get("version_info", "")).split(".")[:2])
        libraries += [path for path in _libraries(Path(settings["home"]).parent) if path.name in (f"python{minor}", "Lib")]
    roots = [path for path in libraries if is_standard_library(path)][:1]
    roots += [path / "site-packages" for path in libraries if (path / "site-packages").is_dir()][:1]
    if not roots:
        raise DatasetError(f"{environment} holds no Python environment: neither a standard library nor site-packages")
    return tuple(roots)


def _libraries(folder: Path) -> list[Path]:
    return [path for pattern in _LIBRARIES for path in sorted(folder.glob(pattern)) if path.is_dir()]


def _virtual_settings(folder: Path) -> dict[str, str]:
    path = folder / "pyvenv.cfg"
    if not path.is_file():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
