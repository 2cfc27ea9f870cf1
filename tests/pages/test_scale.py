"""The scripts for a cluster and for CI on the pages: their syntax, and the options of the commands in them."""

import re
import shlex
import shutil
import subprocess

import pytest
from support.examples import blocks
from support.readme import ROOT

from crossent.cli import crossent

PAGES = sorted((ROOT / "docs").glob("*.md"))
WORKFLOWS = [block for page in PAGES for block in blocks(page, "yaml") if block[1].startswith("name:")]
SCRIPTS = [block for page in PAGES for block in blocks(page, "bash") if block[1].startswith("#!")]


def require_valid(command):
    """Parse a command line as crossent does. A variable stands for 1."""
    words = shlex.split(re.sub(r"\$\{\{.*?\}\}|\$\w+", "1", command))
    assert words[0] == "crossent"
    crossent.commands[words[1]].make_context(words[1], words[2:])


@pytest.fixture(autouse=True)
def no_file_is_needed(monkeypatch):
    """Let `crossent merge` accept the names of files that only the example makes."""
    for parameter in crossent.commands["merge"].params:
        monkeypatch.setattr(parameter.type, "exists", False, raising=False)


@pytest.mark.parametrize("workflow", [code for _, code in WORKFLOWS], ids=[place for place, _ in WORKFLOWS])
def test_a_workflow_is_yaml_whose_commands_have_these_options(workflow):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra docs brings")
    jobs = yaml.safe_load(workflow)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all({"uses", "run"} & step.keys() for step in steps)
    commands = [step["run"] for step in steps if step.get("run", "").startswith("crossent ")]
    assert commands
    for command in commands:
        require_valid(command)
    assert all(job.get("needs", name) in jobs for name, job in jobs.items())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", [code for _, code in SCRIPTS], ids=[place for place, _ in SCRIPTS])
def test_a_script_for_a_cluster_has_the_syntax_of_bash_and_commands_with_these_options(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    commands = re.findall(r"^crossent .*$", script.replace("\\\n", " "), re.M)
    assert commands
    for command in commands:
        require_valid(command)


@pytest.mark.parametrize("command", ["crossent check formula --shard 9/8", "crossent check formula --shards 2 --no"])
def test_a_wrong_option_in_an_example_is_noticed(command):
    with pytest.raises(Exception, match=r"got '9/8'|No such option|no such option"):
        require_valid(command)


def test_there_is_a_workflow_with_shards_and_a_script_for_slurm():
    assert any("--shard ${{ matrix.shard }}/4" in code for _, code in WORKFLOWS)
    assert any("SLURM_ARRAY_TASK_ID" in code for _, code in SCRIPTS)
