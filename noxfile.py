"""Sessions of this project: `nox -s NAME`; `nox -l` lists them."""

import importlib.util
import shutil
import sys
from collections import Counter

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

nox.options.default_venv_backend = "venv"  # pip, so that its constraints and its indexes are used
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "typing"]

# What the machine's torch sees: a line for each device, and one that says what it is.
DEVICES = """
import torch
for i in range(torch.cuda.device_count()):
    print(f"cuda:{i}")
print(f"torch {torch.__version__} sees {torch.cuda.device_count()} of them")
"""

# The oldest torch that the suite passes on, with the numpy of its day.
MINIMUM = ("torch==2.0.1", "numpy<2")


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the suite on each Python that is present."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(venv_params=["--system-site-packages"])
def cuda(session: nox.Session) -> None:
    """Run the suite and the check on every CUDA device, with the machine's own torch. Fails where there is none.

    That torch is the one beside nox, where `pip install -e '.[dev]'` put both into one environment; otherwise the one
    of the system's Python, as in a container.
    """
    beside_nox = importlib.util.find_spec("torch") is not None
    if not beside_nox:
        project = nox.project.load_toml("pyproject.toml")["project"]
        needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
        session.install(*(one for one in needed if Requirement(one).name != "torch"))
        session.install("--no-deps", "-e", ".")  # or pip would put a torch of its own before the machine's
    python = sys.executable if beside_nox else "python"
    found = session.run(python, "-c", DEVICES, external=beside_nox, silent=True, success_codes=[0, 1])
    devices = [line for line in str(found).split() if line.startswith("cuda:")]
    if not devices:
        session.error(f"no CUDA device: {str(found).strip().splitlines()[-1]}")
    chosen = [f"--crossent-device={device}" for device in devices]
    session.run(python, "-m", "pytest", *chosen, *session.posargs, external=beside_nox)
    for device in devices:
        session.run(python, "-m", "crossent", "check", "--device", device, external=beside_nox)


@nox.session(python="3.11")
def minimum(session: nox.Session) -> None:
    """Run the suite on the oldest torch that is supported."""
    session.install(*MINIMUM, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def cover(session: nox.Session) -> None:
    """Make the arrays of cases anew, after an axis or a constraint has changed."""
    session.install("-e", ".", "covertable>=3.2")
    session.run("python", "-m", "crossent.cases.grid")


@nox.session
def assumptions(session: nox.Session) -> None:
    """Measure exp and log on every float32 and on millions of float64 numbers, and print the worst."""
    session.install("-e", ".[test]")
    session.run(
        "pytest", "tests/numerics/test_assumptions.py", "--crossent-exhaustive", "-s", "-n", "0", *session.posargs
    )


@nox.session
def soak(session: nox.Session) -> None:
    """Soak the bounds in 20,000 cases in each dtype, derivatives in a quarter: half an hour on two cores."""
    session.install("-e", ".[test]")
    tests = ("tests/run/test_soak.py", "tests/checks/test_derivatives.py")
    session.run("pytest", *tests, "--crossent-soak", "20000", *session.posargs)


@nox.session
def repetitions(session: nox.Session) -> None:
    """Check the forms a hundred times over with other numbers, which takes an hour on two cores."""
    session.install("-e", ".[test]")
    arguments = ("--crossent-repetitions", "100", "--crossent-level", "normal")
    session.run("pytest", "tests/run/test_repetitions.py", *arguments, *session.posargs)


@nox.session
def search(session: nox.Session) -> None:
    """Search for a case that breaks a form, for some minutes, and show how near to its bound the worst comes."""
    session.install("-e", ".[test]")
    profile = ("--hypothesis-profile=thorough", "--hypothesis-show-statistics", "-s")
    session.run("pytest", "tests/run/test_search.py", *profile, *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Time the forms and their peers in turns, their growth and the verifier: results, plots and the README's tables.

    Ten minutes or so on two cores. `nox -s benchmarks -- --compare REF` fails where a form has become slower than in
    REF, the commit before this one unless given; `-- --help` says what else there is.
    """
    session.install("-e", ".[bench,peers]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def figures(session: nox.Session) -> None:
    """Write the README's tables anew: which subtle defects are found and by whom, and what is asked at each level."""
    session.install("-e", ".[test]")
    tests = ("tests/checks/test_defects.py", "tests/test_readme.py")
    session.run("pytest", *tests, "--crossent-write-figures", "-n", "0", *session.posargs)


@nox.session(venv_backend="none")
def upgrade(session: nox.Session) -> None:
    """Show what moves from one torch to another: `nox -s upgrade -- 2.8.0 2.15.0`, or more; `--reuse`, `--level`, …."""
    try:
        session.run(sys.executable, "-m", "benchmarks.upgrade", *session.posargs, interrupt_timeout=30.0)
    except CommandFailed as failed:  # nox would end with 1 whatever the status is; an old one does not know it
        sys.exit(getattr(failed, "return_code", None) or 1)


@nox.session
def mutants(session: nox.Session) -> None:
    """Print which check kills which wrong cross-entropy of tests/mutants, and write the README's totals anew."""
    session.install("-e", ".[test]")
    arguments = ("--crossent-write-figures", "-n", "0", "-s")
    session.run("pytest", "tests/checks/test_mutants.py", *arguments, *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Change bounds, oracle and checks of a single call in a thousand small ways, and show those that no test notices.

    Half an hour on two busy cores. tests/survivors.toml explains the changes that make no difference. To change another
    module, name it: `nox -s mutate -- numerics.oracle.arithmetic`. Decorated functions and module-level code stay.
    """
    modules = session.posargs or ["numerics.bounds.loss", "numerics.oracle.answer", "checks.single"]
    session.install("-e", ".[test]", "mutmut>=3.8")
    shutil.rmtree("mutants", ignore_errors=True)
    session.run("mutmut", "run", *(f"crossent.{module}.*" for module in modules))
    results = str(
        session.run("mutmut", "results", "--all", "true", silent=True)
    )  # `crossent.numerics.bounds.loss.NAME: killed`, …
    outcomes = [(name, outcome) for name, _, outcome in (line.strip().partition(": ") for line in results.splitlines())]
    survived: dict[str, str] = {}  # by the lines as they are then
    for module in modules:
        of_module = {name: outcome for name, outcome in outcomes if name.startswith(f"crossent.{module}.")}
        session.log(f"{module}: {dict(Counter(of_module.values()))}")
        for name in (name for name, outcome in of_module.items() if outcome not in ("killed", "timeout")):
            diff = str(session.run("mutmut", "show", name, silent=True, log=False))
            lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            survived["\n".join(line[1:].strip() for line in lines if line[0] == "+")] = f"{name}\n" + "\n".join(lines)
    explained = {line for lines in nox.project.load_toml("tests/survivors.toml").values() for line in lines}
    new, noticed = survived.keys() - explained, explained - survived.keys()
    session.log(f"{len(survived)} lines survive, {len(survived) - len(new)} of them explained")
    if new:
        session.error("\n".join(["no test notices", *(survived[line] for line in sorted(new))]))
    if noticed and not session.posargs:
        session.error("\n".join(["tests/survivors.toml explains what tests notice", *sorted(noticed)]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff, and which room imports which with import-linter."""
    session.install("ruff>=0.9", "import-linter>=2.1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy, strictly."""
    session.install("-e", ".", "mypy>=1.13", "nox")
    session.run("mypy")
