"""Find the packages that a machine lacks, and collect a wheelhouse: a folder of wheels for a machine without a network.

    python -m benchmarks.cuda.wheels --python 3.12 --into wheelhouse    # or: nox -s wheelhouse
    pip install --no-index --find-links wheelhouse -r wheelhouse/requirements.txt

The wheelhouse has neither torch, triton nor numpy: the machine has its own builds, which pip must not replace. The
machine must have Linux on x86_64, and glibc 2.28 or newer, which torch itself needs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.cuda.devices import ROOT

ON_THE_MACHINE = ("torch", "numpy", "triton")  # a machine with a GPU has them already
OF_TESTS = ("pytest", "hypothesis")  # packages of the extra `test` that the tests of a session need
FOLDER, LIST = "wheelhouse", "requirements.txt"
ADVICE = (
    f"on a machine with a network, `nox -s wheelhouse` collects the wheels in the folder {FOLDER}; here, "
    f"`pip install --no-index --find-links {FOLDER} -r {FOLDER}/{LIST}` installs them"
)
_GLIBCS = (28, 27, 26, 24, 17, 12, 5)  # minor versions of glibc 2, for the names of platforms


def requirements() -> list[str]:
    """Return the requirements of a session, from pyproject.toml, except the packages of `ON_THE_MACHINE`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tests = [one for one in project["optional-dependencies"]["test"] if name_of(one) in OF_TESTS]
    return [one for one in [*project["dependencies"], *tests] if name_of(one) not in ON_THE_MACHINE]


def name_of(requirement: str) -> str:
    """Return the package of a requirement, without the versions.

    >>> name_of("python-flint>=0.7")
    'python-flint'
    """
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower()


def missing(packages: Iterable[str] = ()) -> list[str]:
    """Return which of crossent's dependencies, and which of `packages`, are not installed."""
    named = [name_of(one) for one in requirements()]
    needed = [*(name for name in named if name not in OF_TESTS), "torch", "numpy", *packages]
    return [name for name in dict.fromkeys(needed) if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def platforms() -> list[str]:
    """Return the platform tags of the wheels that run on the machine."""
    return [f"manylinux_2_{minor}_x86_64" for minor in _GLIBCS] + ["manylinux2014_x86_64", "manylinux2010_x86_64"]


def collect(into: Path, python: str, names: Sequence[str]) -> list[Path]:
    """Download the wheels of the packages and of their dependencies, for a version of Python; return their paths.

    pip resolves the dependencies for that Python. If pip also downloads packages of `ON_THE_MACHINE`, this function
    deletes their wheels.

    Raises:
        subprocess.CalledProcessError: pip finds no wheel, or has no network.
    """
    into.mkdir(parents=True, exist_ok=True)
    (into / LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(into)]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in platforms() for word in ("--platform", platform)]
    subprocess.run([*command, "-r", str(into / LIST)], check=True)
    for wheel in into.glob("*.whl"):
        if name_of(wheel.name.partition("-")[0]) in ON_THE_MACHINE:
            wheel.unlink()
    return sorted(into.glob("*.whl"))


def tried(into: Path, python: str) -> str:
    """Install the wheels into a new environment of this version of Python, without an index; return the outcome.

    If this machine does not have this version, return a sentence which says that only the tags of the wheels fit.

    Raises:
        subprocess.CalledProcessError: a package is missing in the folder, or its wheel is for another platform.
    """
    interpreter = shutil.which(f"python{python}")
    works = interpreter and subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0
    if not interpreter or not works:
        return f"not tried: this machine has no Python {python}. The tags of the wheels fit that version"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        pip = [str(Path(folder, "bin", "pip")), "--disable-pip-version-check", "install", "--quiet", "--no-index"]
        # --no-deps, since torch and numpy are not in the folder. So the command names each wheel.
        subprocess.run([*pip, "--no-deps", "--find-links", str(into), *_names(into)], check=True)
    return f"tried: pip installed the wheels into a new environment of Python {python}, without an index"


def _names(into: Path) -> list[str]:
    return sorted(wheel.name.partition("-")[0] for wheel in into.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the wheelhouse, print its files, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda.wheels", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--into", type=Path, default=Path(FOLDER), metavar="FOLDER", help=f"default: {FOLDER}")
    parser.add_argument("--python", default="3.12", help="the version of Python on the machine; default: 3.12")
    chosen = parser.parse_args(arguments)
    try:
        wheels = collect(chosen.into, chosen.python, requirements())
        how = tried(chosen.into, chosen.python)
    except subprocess.CalledProcessError as error:
        print(f"wheelhouse: pip failed with status {error.returncode}", file=sys.stderr)
        return 1
    size = sum(wheel.stat().st_size for wheel in wheels)
    print("\n".join(wheel.name for wheel in wheels))
    print(how)
    print(
        f"{len(wheels)} wheels, {size / 1e6:.1f} MB, in {chosen.into}; copy the folder to the machine, and run there:"
    )
    print(f"pip install --no-index --find-links {chosen.into} -r {chosen.into / LIST}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
