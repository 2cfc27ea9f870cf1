"""Define the sessions of this project. `nox -s NAME` runs a session, and `nox -l` lists all sessions."""

import importlib.util
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

nox.options.default_venv_backend = "venv"  # so that nox installs with pip, which reads the settings of the user
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "typing"]

# The oldest torch that is supported, and the numpy versions that it works with.
MINIMUM = ("torch==2.0.1", "numpy<2")

# The packages whose losses `nox -s world` checks, with their dependencies.
WORLD = (
    "transformers==5.23.0",
    "keras==3.15.1",
    "optax==0.2.8",
    "jax==0.10.2",
    "ml_dtypes==0.6.0",  # bfloat16 for JAX
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "scikit-learn==1.9.1",
    "mlx[cpu]==0.32.4",
    "fastcore==2.2.38",  # for fastai
    *("einops==0.8.2", "hjson==3.1.0", "msgpack==1.2.4", "ninja==1.13.2", "psutil==7.2.2"),  # for deepspeed
    *("py-cpuinfo==9.0.0", "pydantic==2.14.4", "setuptools==84.2.1", "wheel==0.48.0"),
)
# These are installed without dependencies, since some dependencies, such as torchvision, would install another torch.
WORLD_ALONE = (
    "allennlp==2.10.1",
    "catalyst==22.4",
    "composer==0.32.1",
    "cut-cross-entropy==25.1.1",
    "deepspeed==0.19.8",
    "espnet==202511",
    "fairseq2==0.8.1",
    "fastai==2.8.12",
    "kornia==0.9.0",
    "liger-kernel==0.8.5",
    "litgpt==0.5.13",
    "megatron-core==0.16.1",
    "mmpretrain==1.2.0",
    "mmsegmentation==1.2.2",
    "monai==1.6.1",
    "nemo-toolkit==3.0.0",
    "segmentation-models-pytorch==0.6.0",
    "speechbrain==1.1.2",
    "timm==1.0.31",
    "torchtune==0.6.1",
    "triton==3.9.0",  # for Liger, whose kernels Triton's interpreter runs on a CPU
    "trl==1.16.0",
    "unsloth-zoo==2026.10.9",
)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the tests on each Python version that is installed."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(venv_params=["--system-site-packages"])
def cuda(session: nox.Session) -> None:
    """Run the tests, checks and times that need a GPU, in ten minutes; write the results into benchmarks/results.

    `nox -s cuda -- --pretend` is a dry run on a CPU, and `nox -s cuda -- --help` lists the options. The session runs
    `python -m benchmarks.cuda`, which needs no nox. If torch is installed beside nox, as after
    `pip install -e '.[dev]'`, the session runs in the environment of nox. Otherwise, the session uses the torch of the
    system's Python, for example in a container.
    """
    beside_nox = importlib.util.find_spec("torch") is not None
    if not beside_nox:
        project = nox.project.load_toml("pyproject.toml")["project"]
        needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
        session.install(*(requirement for requirement in needed if Requirement(requirement).name != "torch"))
        session.install("--no-deps", "-e", ".")  # with dependencies, pip would install another torch
    python = sys.executable if beside_nox else "python"
    try:
        command = (python, "-m", "benchmarks.cuda", *session.posargs)
        session.run(*command, external=beside_nox, interrupt_timeout=30.0)
    except CommandFailed as failed:  # nox exits with 1 for every status
        sys.exit(getattr(failed, "return_code", None) or 1)


@nox.session
def wheelhouse(session: nox.Session) -> None:
    """Collect the wheels that a machine with a GPU and without a network may lack, and install them as a test.

    The wheels are for Linux on x86_64 and Python 3.12; `nox -s wheelhouse -- --python 3.13` chooses another version.
    If this version of Python is installed here, the session installs the wheels into a new environment, without a
    network.
    """
    session.run("python", "-m", "benchmarks.cuda.wheels", *session.posargs)


@nox.session
def fused(session: nox.Session) -> None:
    """Test `fused` without a GPU: compile its kernel, and run the kernel and its mutants in Triton's interpreter."""
    session.install("-e", ".[test,triton]")
    tests = ("tests/forms/test_fused.py", "tests/forms/test_against_torch.py", "tests/checks/test_kernel_mutants.py")
    session.run("pytest", *tests[:1], *session.posargs)
    interpreter = {"TRITON_INTERPRET": "1"}
    session.run("pytest", *tests, *session.posargs, env=interpreter)
    for level in ("quick", "normal"):
        session.run("crossent", "check", "fused", "--level", level, env=interpreter)


@nox.session(python="3.11")
def minimum(session: nox.Session) -> None:
    """Run the tests on the oldest supported torch."""
    session.install(*MINIMUM, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def cover(session: nox.Session) -> None:
    """Compute the covering arrays of the cases again, after a change of an axis or a constraint."""
    session.install("-e", ".", "covertable>=3.2")
    session.run("python", "-m", "crossent.cases.cover")


@nox.session
def assumptions(session: nox.Session) -> None:
    """Measure the errors of exp and log on every float32 and millions of float64 numbers, and print the largest."""
    session.install("-e", ".[test]")
    arguments = ("--crossent-exhaustive", "-s", "-n", "0")
    session.run("pytest", "tests/numerics/test_assumptions.py", *arguments, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Test the error bounds with right losses on 20,000 random cases in each dtype, and on several ranks.

    The cases take half an hour on two cores. Then right losses run on 2 and 3 ranks, on 500 random cases in each dtype,
    which takes a quarter of an hour.
    """
    session.install("-e", ".[test]")
    tests = (
        "tests/run/test_soak.py",
        "tests/numerics/test_right_implementations.py",
        "tests/numerics/test_linear_soak.py",
        "tests/checks/test_derivatives.py",
    )
    session.run("pytest", *tests, "--crossent-soak", "20000", *session.posargs)
    session.run("pytest", "tests/checks/test_rank_soak.py", "--crossent-soak", "4000", *session.posargs)


@nox.session
def repetitions(session: nox.Session) -> None:
    """Check the forms and torch with 100 seeds at level quick and 20 at level normal; an hour on two cores."""
    session.install("-e", ".[test]")
    for seeds, level in (("100", "quick"), ("20", "normal")):
        arguments = ("--crossent-repetitions", seeds, "--crossent-level", level)
        session.run("pytest", "tests/run/test_repetitions.py", *arguments, *session.posargs)


@nox.session
def search(session: nox.Session) -> None:
    """Search for a case on which a form fails, and show the largest error as a share of its bound; some minutes."""
    session.install("-e", ".[test]")
    profile = ("--hypothesis-profile=thorough", "--hypothesis-show-statistics", "-s")
    session.run("pytest", "tests/run/test_search.py", *profile, *session.posargs)


@nox.session(python="3.11")
def world(session: nox.Session) -> None:
    """Check the losses of other packages, such as timm and optax; fail on a finding without a reason.

    The session installs 3 GB in some minutes, and then runs for ten minutes on two cores. tests/world/findings.toml has
    the reasons of the findings. tests/world/faults.py has a script for each bug, which does not need crossent.
    `nox -s world -- -k keras` checks the losses of one package.
    """
    session.install("torch==2.13.0", "-e", ".[test]", *WORLD)
    session.install("--no-deps", "--no-build-isolation", *WORLD_ALONE)
    session.run("pytest", "tests/world/test_world.py", "-n", "0", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Time the forms, other libraries and `crossent check`; write benchmarks/results and benchmarks/README.md.

    This takes about ten minutes on two cores. `nox -s benchmarks -- --compare REF` fails if a form is slower than in
    the commit REF. REF defaults to the previous commit. `nox -s benchmarks -- --help` lists the options.
    """
    session.install("-e", ".[bench,peers]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def figures(session: nox.Session) -> None:
    """Write again the tables of defects, checks and attacks, the pictures of the README, and the recorded bounds."""
    session.install("-e", ".[test]")
    tables = ("tests/checks/test_defects.py", "tests/test_readme.py", "tests/run/test_attacks.py")
    tests = (*tables, "tests/numerics/test_recorded_bounds.py")
    session.run("pytest", *tests, "--crossent-write-figures", "-n", "0", *session.posargs)


@nox.session(venv_backend="none")
def upgrade(session: nox.Session) -> None:
    """Show the changes between versions of torch: `nox -s upgrade -- 2.8.0 2.15.0`; `-- --help` lists the options."""
    try:
        session.run(sys.executable, "-m", "benchmarks.upgrade", *session.posargs, interrupt_timeout=30.0)
    except CommandFailed as failed:  # nox exits with 1 for every status, and an old nox does not print the status
        sys.exit(getattr(failed, "return_code", None) or 1)


@nox.session
def mutants(session: nox.Session) -> None:
    """Print which check finds which wrong cross-entropy of tests/mutants, and write the tables of the counts.

    The session also writes the lists of the cases that a run takes first. `nox -s mutants -- -k first_cases` writes
    only these lists, in ten minutes.
    """
    session.install("-e", ".[test]")
    arguments = ("--crossent-write-figures", "-n", "0", "-s")
    # The test of the order writes the first cases. It runs first, because the counts of a linear cross-entropy stop at
    # the first case that shows a mutant.
    tests = ("tests/run/test_order.py", "tests/checks/test_mutants.py", "tests/checks/test_linear_mutants.py")
    session.run("pytest", *tests, *arguments, *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Change bounds, oracle and checks in a thousand small ways, and show each change that no test notices.

    The session takes half an hour on two cores. tests/survivors.toml explains the changes that no test can notice.
    `nox -s mutate -- numerics.oracle.arithmetic` changes only this module. The package mutmut makes the changes. It
    changes neither decorated functions nor code outside of functions.
    """
    modules = session.posargs or ["numerics.bounds.loss", "numerics.oracle.answer", "checks.single"]
    session.install("-e", ".[test]", "mutmut>=3.8")
    shutil.rmtree("mutants", ignore_errors=True)
    session.run("mutmut", "run", *(f"crossent.{module}.*" for module in modules))
    # Each line of the output is like `crossent.numerics.bounds.loss.NAME: killed`.
    results = str(session.run("mutmut", "results", "--all", "true", silent=True))
    outcomes = [(name, outcome) for name, _, outcome in (line.strip().partition(": ") for line in results.splitlines())]
    survived: dict[str, str] = {}  # the diff of each survivor, by its changed lines
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
        session.error("\n".join(["no test notices these changes:", *(survived[line] for line in sorted(new))]))
    if noticed and not session.posargs:
        session.error(
            "\n".join(["a test notices these changes; delete them in tests/survivors.toml:", *sorted(noticed)])
        )


@nox.session
def hostile(session: nox.Session) -> None:
    """Run all attacks on the command, and read 10,000 forged replies of each kind and 10,000 forged reports.

    The attacks take ten minutes, the forged replies and reports half an hour. SECURITY.md has the results.
    `nox -s hostile -- stalls` runs the attacks of one kind, and `nox -s hostile -- --no-namespaces` runs the attacks as
    on a system without namespaces.
    """
    session.install("-e", ".[test]")
    if not session.posargs:
        tests = ("tests/run/test_wire.py", "tests/report/test_forged_reports.py")
        session.run("pytest", *tests, "-n", "0", env={"CROSSENT_HOSTILE": "10000"})
    results = session.posargs or ["--jobs", "2", "--json", "../benchmarks/results/attacks.json"]
    with session.chdir("tests"):
        session.run("python", "-m", "support.attacks", *results, env={"PYTHONPATH": "."})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into docs/_build/html; fail on a warning, such as a link without a target.

    The build needs no network. The session also fails if a picture differs from what docs/pictures.py draws.
    """
    session.install("-e", ".[docs]")
    session.run("python", "docs/pictures.py", "--check")
    session.run("sphinx-build", "-E", "-W", "--keep-going", "-n", "docs", "docs/_build/html", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel, check their files and their metadata, and run the wheel in a new environment."""
    session.install("build>=1.2", "twine>=6.1")
    dist = Path(session.create_tmp(), "dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    tracked = str(session.run("git", "ls-files", external=True, silent=True)).splitlines()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    shipped = set(zipfile.ZipFile(wheel).namelist())
    missing = [f"{sdist.name}: {name}" for name in tracked if not name.startswith(".") and name not in packed]
    missing += [f"{wheel.name}: {name}" for name in tracked if name.startswith("crossent/") and name not in shipped]
    if missing:
        session.error("\n".join(["files are missing:", *missing]))
    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):  # outside the clone
        session.run("python", "-m", "venv", "venv")
        session.run("venv/bin/pip", "install", "--quiet", str(wheel), external=True)
        session.run("venv/bin/crossent", "check", "formula", "--level", "quick", external=True, env={"PYTHONPATH": ""})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff, and the imports between the rooms with import-linter."""
    session.install("ruff>=0.9", "import-linter>=2.1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "."})


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy in strict mode."""
    session.install("-e", ".[test]", "mypy>=1.13", "nox")
    session.run("mypy")
