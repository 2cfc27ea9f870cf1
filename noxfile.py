"""Sessions of this project: `nox -s NAME`; `nox -l` lists them."""

import subprocess

import nox

nox.options.default_venv_backend = "venv"  # pip, so that its constraints and its indexes are used
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "typing"]

# The oldest torch that the suite passes on, with the numpy of its day.
MINIMUM = ("torch==2.0.1", "numpy<2")


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the suite on each Python that is present."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session(venv_params=["--system-site-packages"])
def cuda(session: nox.Session) -> None:
    """Run the suite and the check on every CUDA device, with the machine's own torch. Fails where there is none."""
    found = subprocess.run(
        [
            session.bin + "/python",
            "-c",
            "import torch; print(*(f'cuda:{i}' for i in range(torch.cuda.device_count())))",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        session.error(f"the Python of this session has no torch of the machine's: {found.stderr.splitlines()[-1]}")
    devices = found.stdout.split()
    if not devices:
        session.error("no CUDA device: torch.cuda.device_count() is 0")
    session.install("-e", ".[test]")
    session.run("pytest", *(f"--crossent-device={device}" for device in devices), *session.posargs)
    for device in devices:
        session.run("crossent", "check", "--device", device)


@nox.session(python="3.11")
def minimum(session: nox.Session) -> None:
    """Run the suite on the oldest torch that is supported."""
    session.install(*MINIMUM, "-e", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Time every form beside nn.CrossEntropyLoss; arguments go to pytest-benchmark."""
    session.install("-e", ".[bench]")
    session.run("pytest", "benchmarks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install("ruff>=0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy, strictly."""
    session.install("-e", ".", "mypy>=1.13", "nox")
    session.run("mypy")
