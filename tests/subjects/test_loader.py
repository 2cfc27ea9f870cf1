"""Loading: the names and objects that can be a subject; any other name or object is an error of one line."""

import functools
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.running import run

import crossent
from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.checks.derivatives import double_backward
from crossent.cli import WRONG_USE, main
from crossent.forms import FORMS, KERNEL_FORMS, LINEAR_FORMS
from crossent.subjects import compiler
from crossent.subjects.builtin import BY_NAME, NAMED
from crossent.subjects.callables import as_subject
from crossent.subjects.loader import load

MINE = """
import torch.nn.functional as F
from neighbour import cross_entropy

print("a lot\\n" * 10_000)


def loss(logits, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return cross_entropy(logits, labels, weight, None, ignore_index, None, reduction, label_smoothing)


class Kernels:
    fused = loss
    number = 3


def __getattr__(name):
    if name == "broken":
        raise ZeroDivisionError("no such thing\\nat all")
    if name == "exits":
        raise SystemExit(3)
    if name == "lazy":
        return F.no_such_function
    raise AttributeError(name)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Enter and return a folder with mine.py, neighbour.py and a package. After the test, unload their modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("from torch.nn.functional import cross_entropy\n")
    (tmp_path / "mine.py").write_text(MINE)
    for name in ("neighbour", "mine", "package"):  # another test may have imported a module with this name
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inside.py").write_text("import torch\nLoss = torch.nn.CrossEntropyLoss\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def returns_torchs_loss(subject):
    given = Case("float64").build()
    return subject.loss(given.input, given.target, **given.options).equal(F.cross_entropy(given.input, given.target))


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("mine.py:loss", "loss"),
        ("./mine.py:loss", "loss"),
        ("mine.py:Kernels.fused", "fused"),
        ("mine:loss", "loss"),
        ("package.inside:Loss", "Loss"),
        ("package/inside.py:Loss", "Loss"),
        ("torch.nn:functional.cross_entropy", "cross_entropy"),
    ],
)
def test_a_description_is_loaded_and_its_source_loads_it_from_anywhere(folder, capfd, monkeypatch, description, name):
    (subject,) = load(description)
    assert subject.name == name
    assert returns_torchs_loss(subject)
    assert capfd.readouterr() == ("", "")  # nothing is printed: stdout is for the report
    monkeypatch.chdir("/") if ".py:" in description else None
    (again,) = load(subject.source)
    assert again.source == subject.source
    assert returns_torchs_loss(again)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_loaded_by_its_source(name):
    for subject in load(name):
        assert BY_NAME[subject.source] is BY_NAME[subject.name]
        assert [one.name for one in load(subject.source)][-1] in (subject.name, "torch_nll")


def test_a_loss_of_a_file_can_be_sent_to_another_process(folder):
    (subject,) = load("mine.py:loss")
    assert pickle.loads(pickle.dumps(subject.loss)) is subject.loss


@pytest.mark.parametrize("name", ["random", "torch", "my-kernel", "json", "two.dots"])
def test_a_file_hides_no_module_of_its_name(folder, name):
    (folder / f"{name}.py").write_text(MINE)
    before = sys.modules.get(name)
    (subject,) = load(f"{name}.py:loss")
    assert returns_torchs_loss(subject)
    assert sys.modules.get(name) is before


def test_a_file_is_loaded_once(folder):
    assert load("mine.py:loss")[0].loss is load("mine.py:Kernels.fused")[0].loss


UNLOADABLE = {
    "syntax": ("def loss(:\n", "syntax.py, line 1: SyntaxError: invalid syntax"),
    "imports": ("\nimport no_such_thing\n", "imports.py, line 2, raises ModuleNotFoundError: No module named"),
    "raises": ("x = 1\n\ndef f():\n    1 / 0\nf()\n", "raises.py, line 4, raises ZeroDivisionError: division by zero"),
    "exits": (
        "import sys\nprint('much\\n' * 1000)\nsys.exit(3)\n",
        "exits.py, line 3, exits with 3 while it is loaded",
    ),
    "quits": ("raise SystemExit\n", "quits.py, line 1, exits with None while it is loaded"),
    "worse": ("raise BaseException('a\\nb')\n", "worse.py, line 1, raises BaseException: a"),
    "binary": (b"\x00\xff\x00", "SyntaxError: "),
}


@pytest.mark.parametrize("name", UNLOADABLE)
@pytest.mark.parametrize("form", ["{}.py:loss", "{}:loss"])
def test_a_file_that_does_not_load_is_an_error_of_one_line_and_leaves_no_module(folder, capsys, name, form):
    content, said = UNLOADABLE[name]
    (folder / f"{name}.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    main(["check", "no_such_subject"])  # so that the modules of crossent are already imported
    capsys.readouterr()
    modules, path = set(sys.modules), list(sys.path)
    assert main(["check", form.format(name)]) == WRONG_USE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"crossent: subject: got '{form.format(name)}'; ")
    assert said in err
    assert err.count("\n") == 1
    assert set(sys.modules) == modules
    assert sys.path == path


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ("missing.py:loss", "'missing.py' does not exist"),
        (".:loss", "'.' is neither a module nor a file; allowed are formula,"),
        ("a b:loss", "'a b' is neither a module nor a file; allowed are formula,"),
        ("./:loss", "'./' is a folder; write path/to/file.py:NAME"),
        ("package/:loss", "'package/' is a folder; write path/to/file.py:NAME"),
        ("./notes.txt:loss", "'./notes.txt' is not a .py file; write path/to/file.py:NAME"),
        ("mine.py", "the name of the function or class is missing; write mine.py:NAME"),
        ("mine.py:", "the name of the function or class is missing; write mine.py:NAME"),
        ("mine.py:los", "mine.py has no 'los'; did you mean loss?"),
        ("mine.py:xyz", "mine.py has no 'xyz'; it has Kernels, cross_entropy, loss"),
        ("mine.py:Kernels.fusd", "mine.py has no 'Kernels.fusd'; did you mean Kernels.fused?"),
        ("mine.py:Kernels.xyz", "mine.py has no 'Kernels.xyz'; Kernels has fused"),
        ("mine.py:Kernels..fused", "'Kernels..fused' is not a Python name; write the name of an object in mine.py"),
        ("mine.py:broken", "reading 'broken' from mine.py raises ZeroDivisionError: no such thing"),
        ("mine.py:exits", "reading 'exits' from mine.py raises SystemExit: 3"),
        (
            "mine.py:lazy",
            "reading 'lazy' from mine.py raises AttributeError: module 'torch.nn.functional' has no attribute",
        ),
        (
            "mine.py:Kernels.number",
            "it is an object of type int, which is not callable; allowed are a callable with the signature of",
        ),
        ("mine.py:F", "it is an object of type module, which is not callable; allowed are"),
        ("mine.py:Kernels", "it is the class Kernels, whose instances cannot be called; allowed are"),
        ("no.such.module:loss", "there is no module 'no'; for a file, write path/to/file.py:NAME"),
        ("package.outside:loss", "there is no module 'package.outside'"),
        (":loss", f"allowed are {', '.join([*FORMS, *KERNEL_FORMS, 'torch', *LINEAR_FORMS])}, package.module:NAME and"),
        ("", "allowed are formula, "),
        ("formulae", "did you mean formula? allowed are formula, "),
        ("formulae+compile", "path/to/file.py:NAME; all except scalar also with +compile"),
        ("formula+compiled", "did you mean formula? allowed are"),
        ("scalar+compile", "scalar computes with Python numbers, not with tensors; leave out +compile"),
        ("mine.py:los+compile", "mine.py has no 'los'; did you mean loss?"),
    ],
)
def test_the_error_of_a_wrong_description_is_one_line_with_the_given_and_the_allowed(folder, capsys, description, said):
    (folder / "notes.txt").write_text("")
    assert main(["check", description]) == WRONG_USE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"crossent: subject: got {description!r}; ")
    assert said in err
    assert err.count("\n") == 1


class Fixed(torch.nn.Module):
    def forward(self, input, target):
        return F.cross_entropy(input, target)


class Callable:
    def __init__(self, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        self.options = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}

    def __call__(self, input, target):
        return F.cross_entropy(input, target, **self.options)


class Smaller(torch.nn.Module):
    def __init__(self, weight=None, reduction="mean"):
        super().__init__()
        self.loss = torch.nn.CrossEntropyLoss(weight, reduction=reduction)

    def forward(self, logits, labels):
        return self.loss(logits, labels)


class NeedsTarget(Smaller):
    def __init__(self, target, weight=None):
        super().__init__(weight)


class Plain(torch.nn.Module):
    def forward(self, input, target):
        return F.cross_entropy(input, target)


def makes(reduction="mean"):
    return torch.nn.CrossEntropyLoss(reduction=reduction)


def only_positional(x, y, weight=None, /, *, reduction="mean"):
    return F.cross_entropy(x, y, weight, reduction=reduction)


OPTIONS = ["ignore_index", "label_smoothing", "reduction", "reduction_none", "reduction_sum", "weight"]


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        (F.cross_entropy, []),
        (torch.nn.CrossEntropyLoss, []),
        (functools.partial(torch.nn.CrossEntropyLoss), []),
        (lambda **options: torch.nn.CrossEntropyLoss(**options), []),
        (lambda *arguments, **options: F.cross_entropy(*arguments, **options), []),
        (lambda x, y, **options: F.cross_entropy(x, y, **options), []),
        (lambda x, y: F.cross_entropy(x, y), OPTIONS),
        (lambda x, y, other=3: F.cross_entropy(x, y), OPTIONS),
        (makes, [name for name in OPTIONS if "reduction" not in name]),
        (Callable, []),
        (Smaller, ["ignore_index", "label_smoothing"]),
        (Plain, OPTIONS),
        (only_positional, ["ignore_index", "label_smoothing", "weight"]),
        (torch._C._nn.cross_entropy_loss, []),  # written in C++, without a signature
    ],
)
def test_a_callable_or_a_class_is_called_with_the_options_that_it_has(given, lacks):
    subject = as_subject(given)
    assert sorted(subject.lacks) == lacks
    assert set(subject.lacks.values()) <= {
        "takes weight only by position",
        *(f"has no {name}" for name in ("weight", "ignore_index", "reduction", "label_smoothing")),
    }
    if given is not torch._C._nn.cross_entropy_loss:
        assert returns_torchs_loss(subject)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "subject: got an object of type int, which is not callable; allowed are a callable"),
        (None, "subject: got an object of type NoneType, which is not callable; allowed are a callable"),
        (Fixed(), "subject: got an instance of Fixed; pass the class, so that crossent can set the options"),
        (object, "subject: got the class object, whose instances cannot be called"),
        (lambda: None, "which does not take input and target"),
        (lambda x: x, "which does not take input and target"),
        (lambda x, y, z: x, "which requires the argument 'z'"),
        (lambda x, y, weight, /: x, "which requires the argument 'weight'"),
        (lambda x, y, *, scale: x, "which requires the argument 'scale'"),
        (lambda x, *, target: x, "takes target only as a keyword, but gets input and target by position; allowed are"),
        (lambda x, *, target, weight=None: x, "takes target only as a keyword, but gets input and target by position"),
        (NeedsTarget, "'NeedsTarget', which requires the argument 'target'; allowed are"),
        (torch.nn.Linear, "'Linear', which requires the argument 'in_features'"),
    ],
)
def test_an_object_that_is_no_cross_entropy_is_refused_in_one_line(given, said):
    with pytest.raises(TypeError) as caught:
        load(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grade_applies_to_half_precision_of_foreign_subjects_alone():
    def stored(input, target, **options):
        return -torch.log_softmax(input, 1).gather(1, target[:, None]).mean()

    assert load(stored)[0].grade("bfloat16") == "A"
    mine = load(stored, grade="B")[0]
    assert [mine.grade(dtype) for dtype in ("float16", "bfloat16", "float32")] == ["B", "B", "A"]
    assert load("formula", grade="B")[0].grade("float16") == "A"
    with pytest.raises(ValueError, match="grade: got 'C'; allowed are A, B, float16=B, bfloat16=B"):
        load(stored, grade="C")


def test_a_compiled_subject_is_compiled_for_every_call(monkeypatch):
    seen = []
    monkeypatch.setattr(
        compiler, "_code", lambda loss: lambda *args, **options: seen.append(loss) or loss(*args, **options)
    )
    subjects = load("torch+compile")
    assert [subject.name for subject in subjects] == ["torch+compile"]
    assert all(returns_torchs_loss(subject) for subject in subjects)
    assert len(seen) == 1
    assert subjects[0].not_transformed == "is already compiled"
    assert subjects[0].compiled
    assert double_backward.why_not_run(subjects[0], Case("float32").build())
    assert load("formula+compile", device="cuda:0")[0].promise == "fast_kernel"


def test_code_of_a_file_that_is_compiled_for_a_gpu_has_approximate_functions(folder):
    (folder / "formula.py").write_text("import crossent\nmine = crossent.formula\n")
    devices = ("cpu", "cuda:0", "xpu")
    promises = {device: load("formula.py:mine+compile", device=device)[0].promise for device in devices}
    assert promises == {"cpu": "kernel", "cuda:0": "fast_kernel", "xpu": "fast_kernel"}


def test_a_compiled_subject_is_right(folder):
    if reason := compiler.why_cannot_compile("inductor", "cpu"):
        pytest.skip(reason)
    (folder / "formula.py").write_text("import crossent\nmine = crossent.formula\n")
    (subject,) = load("formula.py:mine+compile")
    cases = [Case("float32"), Case("float64", (3, 4, 2), reduction="sum", weight="weighted")]
    (part,) = run(subject, cases, [CHECKS[name] for name in ("call", "loss", "gradient")]).subjects
    assert set(part.outcomes) == {case.id for case in cases}
    assert part.findings == []


def test_a_command_finds_a_module_in_the_folder_where_it_runs(folder):
    code = "import sys; sys.path.remove(''); from crossent.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "check", "package.inside:Loss", "--level", "quick", "--dtype", "float64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert "Loss: " in done.stdout, done.stderr


def test_the_second_of_two_subjects_with_one_name_has_a_number(folder):
    report = crossent.check("mine.py:loss", "mine.py:Kernels.fused", "mine:loss", level="quick", dtypes="float64")
    assert [part.name for part in report.subjects] == ["loss", "fused#2", "loss#2"]
