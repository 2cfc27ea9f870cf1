"""Forged and damaged reports: no command executes what a report contains, and a message about damage is one line.

`nox -s hostile` tests 10,000 such reports.
"""

import copy
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crossent
from crossent.cli import main
from crossent.report.reader import find, read_report, report_of, unlike
from crossent.run import verify as verification
from crossent.subjects.builtin import BY_NAME, EVERY_NAMED
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.trials.check import Cost

EXAMPLES = int(os.environ.get("CROSSENT_HOSTILE", "100"))
CASES = (
    "float32-7x5-normal-int64-none-weighted-rows",
    "float16-9x4-wide-probabilities-mean-smooth0.1",
    "class_negative",
)
SECONDS = 60
MOST_CASES = 30  # the most cases that a run in this test may have, since a forged report may demand a whole level
# The keys of a subject's report whose values follow from other values, as "cases" and "elements" of "coverage" do.
DERIVED = ("counts", "grades", "checks", "not_run")
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")


class Watch:
    """An audit hook that collects started programs and connections while `on` is true. No hook can be removed."""

    on, seen = False, []

    @classmethod
    def hook(cls, event, arguments):
        if cls.on and event in FORBIDDEN:
            cls.seen.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def watched():
    sys.addaudithook(Watch.hook)


@pytest.fixture(scope="module")
def true(tmp_path_factory):
    """Return the report of a real run, with findings, and its file."""

    def off(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        return crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing) * 1.01

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EVERY_NAMED, "formula", (replace(BY_NAME["formula"], loss=off),))
        report = crossent.check("formula", "torch", level="quick", cases=CASES)
        assert report.subjects[0].findings
        path = tmp_path_factory.mktemp("true") / "true.json"
        report.write_json(path)
        yield report, path


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    """Return the folder of a file whose import creates another file."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "canary.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\ndef loss(input, target): return input\n")
    return folder


def values(random, canary):
    """Return a random value that is wrong everywhere in a report, or at most keys."""
    return random.choice(
        [
            *(None, True, False, 0, -1, 1, 3, 1.5, -0.5, 10**400, -(10**30), 2**63, 1e308, 5e-324),
            *(
                "",
                "x",
                "nan",
                "inf",
                "-inf",
                "a\nb",
                "\x1b[31mred",
                "\x1b]0;title\x07",
                "\u202e",
                "\ud800",
                "x" * 10_000,
            ),
            *(
                "cpu",
                "cuda",
                "cuda:9",
                "meta",
                "quick",
                "thorough",
                "00000000",
                "A",
                "loss",
                "errors",
                "float64",
                "*",
                "**[a",
            ),
            *(f"{canary}/canary.py:loss", "os:system", "$(touch x)", "';import os#", '"""', "formula+compile"),
            *(
                "float32-99999999x99999999-normal-int64-mean",
                "float32-7x5-normal-int64-none-rows-tiled9999999",
                "0-0-0-0-0",
            ),
            *([], [[]], ["x"], [-1], [10**30], [0] * 30, {}, {"x": 1}, {"": {}}, {"nan": "inf"}, {"ratio": -1}),
        ]
    )


def places(part, before=()):
    """Yield the path of each value in a document, as a tuple of keys and indices."""
    keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
    for key in keys:
        yield (*before, key)
        yield from places(part[key], (*before, key))


def mutate(document, random, canary):
    """Change a random value or key of a document in place."""
    depth = random.randint(1, 7)
    place = [random.choice(list(document))]
    part = document
    while len(place) < depth and isinstance(part[place[-1]], (dict, list)) and part[place[-1]]:
        part = part[place[-1]]
        place.append(random.choice(list(part) if isinstance(part, dict) else range(len(part))))
    key = place[-1]
    match random.randrange(8):
        case 0:
            del part[key]
        case 1 | 2 | 3:
            part[key] = values(random, canary)
        case 4:
            if isinstance(part[key], (int, float)):
                part[key] = part[key] * random.choice([-1, 2, 10**300, 0]) if part[key] < 1e9 else 0
            elif isinstance(part[key], str):
                part[key] = part[key] * 300 if random.random() < 0.5 else part[key][::-1]
            else:
                part[key] = values(random, canary)
        case 5:
            if isinstance(part, list):
                part.insert(random.randint(0, len(part)), copy.deepcopy(part[key]))
            else:
                part[str(values(random, canary))[:50]] = part.pop(key)
        case 6:
            other = random.choice(list(part) if isinstance(part, dict) else range(len(part)))
            part[key], part[other] = part[other], part[key]
        case _:
            nested = part[key]
            for _ in range(random.choice([1, 3, 100])):
                nested = [nested]
            part[key] = nested


def forged(document, random, canary):
    """Return the bytes of a forged or damaged report, and its document; None for the document if it is damaged JSON."""
    document = copy.deepcopy(document)
    if random.random() < 0.2:
        part = random.choice(document["subjects"])
        mutate(random.choice([document["coverage"], *(part[name] for name in DERIVED if part[name])]), random, canary)
    else:
        for _ in range(random.choice([1, 1, 1, 2, 5])):
            if document:
                mutate(document, random, canary)
    text = json.dumps(document)
    match random.randrange(12):
        case 0:
            return text[: random.randrange(len(text))].encode(), None
        case 1:
            at = random.randrange(len(text))
            damage = random.choice([b"\xff", b"\0", b"[" * 5000, b"NaN", b"9" * 5000])
            content = text[:at].encode() + damage + text[at:].encode()
            return content, parsed(content)
        case 2:
            key = random.choice(list(document) or ["x"])
            return (text[:-1] + f", {json.dumps(key)}: 1, {json.dumps(key)}: 2}}").encode(), None
    return text.encode(), document


def parsed(content):
    """Return the JSON document, or None if the text is not JSON. After damage within a string, the text may be JSON."""
    try:
        return json.loads(content, parse_constant=int)  # int("NaN") raises ValueError, as NaN is not JSON
    except (ValueError, RecursionError):
        return None


def sources(document):
    """Return a copy of a document without the values that follow from other values."""
    document = copy.deepcopy(document)
    for name in ("cases", "elements") if isinstance(document.get("coverage"), dict) else ():
        document["coverage"].pop(name, None)
    subjects = document.get("subjects")
    for part in subjects if isinstance(subjects, list) else []:
        for name in DERIVED if isinstance(part, dict) else ():
            part.pop(name, None)
    return document


def hung(signal, frame):
    raise TimeoutError("the command hangs")


@pytest.fixture
def short(monkeypatch, true, tmp_path):
    """Let `verify` run at most `MOST_CASES` in this process, and let `check` return the true report without a run."""
    run = verification.run

    def run_few(chosen, subjects, progress=iter):
        planned = chosen.plan()
        # torch.compile calls a C++ compiler, which takes too long. Compiled subjects and some checks use torch.compile.
        compiles = any(check.cost is Cost.CODE for checks in planned.values() for check in checks)
        if compiles or any(subject.name.endswith(COMPILE_SUFFIX) for subject in subjects):
            raise ValueError("too slow for this test")
        if len(planned) > MOST_CASES:
            raise ValueError("too many cases for this test")
        return run(chosen, subjects, progress=progress)

    monkeypatch.setattr("crossent.run.verify.run", run_few)
    monkeypatch.setattr("crossent.machine.cores", lambda: None)
    monkeypatch.setattr(
        "crossent.run.runner.check", lambda *subjects, **options: replace(copy.deepcopy(true[0]), seed=options["seed"])
    )
    monkeypatch.chdir(tmp_path)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(random=st.randoms(use_true_random=True))
def test_a_forged_report_is_refused_or_is_data(random, true, canary, short, tmp_path, capsys):
    report, right = true
    whole = report.to_json()
    content, document = forged(whole, random, canary)
    path = tmp_path / "forged.json"
    path.write_bytes(content)
    finding = next(finding.id for part in report.subjects for finding in part.findings)
    commands = {
        "diff": ["diff", str(path), str(right), *random.choice([[], ["--force"], ["--strict"]])],
        "diff to": ["diff", str(right), str(path), *random.choice([[], ["--force"]])],
        "repro": ["repro", finding, str(path)],
        "verify": ["verify", str(path), *random.choice([[], ["--force"]])],
        "baseline": ["check", "formula", "torch", "--level", "quick", "--no-cache", "--baseline", str(path)],
    }
    name = random.choice(list(commands))
    capsys.readouterr()
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    Watch.on, Watch.seen = True, []
    try:
        status = main(commands[name])
    finally:
        Watch.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    out, err = capsys.readouterr()
    assert Watch.seen == []
    assert not (canary / "ran").exists()
    assert list(Path.cwd().iterdir()) == [path]
    assert all(line.isprintable() for line in [*out.split("\n"), *err.split("\n")])
    assert status in (0, 1, 2)
    if status == 2:
        assert out == ""
        assert err.startswith("crossent: ")
        assert err.count("\n") == 1
        assert len(err) < 3_000
    if document is None:
        assert status != 0
    elif name != "repro":
        if list(unlike(document, whole)) and not list(unlike(sources(document), sources(whole))):
            assert status == 2  # the derived values contradict the others
        if name == "verify" and status == 0:
            assert [*unlike(document["subjects"], true_subjects(whole, document))] == []


def true_subjects(whole, document):
    """Return the subjects of the true report `whole`, in the order of another report `document`."""
    order = [part["name"] for part in document["subjects"]]
    return sorted(whole["subjects"], key=lambda part: order.index(part["name"]))


def test_the_true_report_is_verified(true, short, capsys):
    assert main(["verify", str(true[1])]) == 0
    assert "every call has the result of the report" in capsys.readouterr().out


def test_a_report_cannot_propose_a_word_for_without_that_is_no_feature(true, tmp_path):
    """A report proposes features for the option --without, and users may copy the option into a shell."""
    document = true[0].to_json()
    document["subjects"][0]["needs"] = {"double_backward": ["gradient", "; rm -rf ~"]}
    file = tmp_path / "forged.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"needs: double_backward: got '; rm -rf ~'; allowed are the names of"):
        read_report(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ulp", -1.0, "ulp is -1.0; allowed is 0 or more"),
        ("elements", -2, "elements is -2; allowed is 0 or more"),
        ("elements", "x", "elements is 'x'; it must be an integer"),
        ("not_judged", {"it overflows": -3}, "not_judged: it overflows is -3; allowed is 0 or more"),
    ],
)
def test_the_message_about_a_wrong_number_names_the_check_the_number_and_its_value(true, key, value, message):
    document = true[0].to_json()
    document["subjects"][0]["cases"][CASES[0]]["loss"][key] = value
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(f'{CASES[0]}: loss: {message}')}$"):
        report_of(document)


GONE = object()
CASE, SUBJECT = CASES[0], ("subjects", 0)
FINDING = (*SUBJECT, "findings", 0)
SHARD = {"number": 1, "count": 2, "planned": 2, "places": {}, "known": [], "run": {}, "sources": {}}
NO_FIT = "does not fit the cases and findings: its value is wrong, or the key is unknown or missing"
# The path of a value in the document of a report, another value or `GONE`, and the message.
DAMAGE = {
    "an unknown key": (("extra",), 1, f"extra {NO_FIT}"),
    "a missing key": (("crossent",), GONE, f"crossent {NO_FIT}"),
    "a wrong count": (("coverage", "cases"), 9, f"coverage.cases, 9, {NO_FIT}"),
    "a number of a shard": (
        ("shard",),
        SHARD | {"number": 3},
        "shard: number is 3; it must be from 1 to the count, which is 2",
    ),
    "a count of a shard": (
        ("shard",),
        SHARD | {"count": 0},
        "shard: number is 1; it must be from 1 to the count, which is 0",
    ),
    "a place of a shard": (
        ("shard",),
        SHARD | {"places": {CASE: 7}},
        f"shard: places: {CASE} has the place 7; a place must be at least 0, "
        "and less than the number of planned cases, 2",
    ),
    "a place of an empty plan": (
        ("shard",),
        SHARD | {"planned": 0, "places": {CASE: 0}},
        f"shard: places: {CASE} has the place 0; a place must be at least 0, "
        "and less than the number of planned cases, 0",
    ),
    "a check that passed twice": (
        (*SUBJECT, "cases", CASE, "held"),
        ["repeat", "repeat"],
        f"{CASE}: repeat is listed as passed, and also has numbers or a finding, or is listed twice",
    ),
    "a checksum that may be empty": (
        (*SUBJECT, "cases", CASE, "digest"),
        "zz",
        f"{CASE}: digest is 'zz'; it must be empty or eight hexadecimal digits in lower case",
    ),
    "an entry of a shard": (
        ("shard",),
        SHARD | {"known": [["a", "b", "c"]]},
        "shard: known: got ['a', 'b', 'c']; each entry must be an array of a text and a state",
    ),
    "a list of a shard": (("shard",), SHARD | {"known": 1}, "shard: known is 1; it must be "),
    "a state of a shard": (
        ("shard",),
        SHARD | {"known": [["a", "b"]]},
        "shard: known: got the state 'b'; allowed are ",
    ),
    "a checksum": (
        (*SUBJECT, "cases", CASE, "results", "loss", "digest"),
        "zz",
        f"{CASE}: loss: digest is 'zz'; it must be eight hexadecimal digits in lower case",
    ),
    "a checksum in upper case": (
        (*SUBJECT, "cases", CASE, "inputs"),
        "ABCDEF12",
        f"{CASE}: inputs is 'ABCDEF12'; it must be eight hexadecimal digits in lower case",
    ),
    "a dtype": ((*SUBJECT, "cases", CASE, "results", "loss", "dtype"), 3, f"{CASE}: loss: dtype is 3; it must be "),
    "an index": ((*FINDING, "index"), 5, "a finding: index is 5; it must be an array of integers that are 0 or more"),
    "a message": ((*FINDING, "message"), 5, "a finding: message is 5; it must be a str"),
    "a number": ((*FINDING, "got"), "x", "a finding: got is 'x'; it must be a number"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_message_about_damage_names_the_place_and_what_is_allowed_there(true, damage):
    (*path, last), value, message = DAMAGE[damage]
    document = part = true[0].to_json()
    for key in path:
        part = part[key]
    part[last] = value
    if value is GONE:
        del part[last]
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        report_of(document)


def test_the_message_about_a_damaged_finding_names_the_finding_or_the_subject(true):
    document = true[0].to_json()
    finding = document["subjects"][0]["findings"][0]["id"]
    document["subjects"][0]["name"] = 5
    with pytest.raises(ValueError, match=r": a subject: name is 5; it must be a str"):
        find(document, finding)
    document["subjects"][0]["findings"][0]["id"] = 5
    with pytest.raises(ValueError, match=r": a finding: id is 5; it must be a str"):
        find(document, finding)


@pytest.mark.parametrize("ratio", ["nan", "inf", 1.5])
def test_a_result_that_exceeds_its_bound_has_a_finding(true, ratio):
    """Otherwise, the report would pass with this result, and the HTML page cannot show NaN or infinity as a pass."""
    document = copy.deepcopy(true[0].to_json())
    (part,) = (part for part in document["subjects"] if part["name"] == "torch")
    part["cases"][CASES[0]]["loss"]["ratio"] = ratio
    message = f"{CASES[0]}: loss: ratio is {ratio}, and the check has no finding; allowed is 0 to 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        report_of(document)
