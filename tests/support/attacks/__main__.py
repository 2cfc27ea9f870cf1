"""Run attacks and print a table: `python -m support.attacks [NAME or KIND ...]`, in tests/. See --help.

Exit status 1 if an attack succeeds.
"""

import argparse
import json
import sys
from pathlib import Path

from support.attacks import ATTACKS
from support.attacks.running import LONGEST, run

parser = argparse.ArgumentParser(description="Run attacks on the command, and print a table.")
parser.add_argument("names", nargs="*", help="names or kinds of attacks; all by default")
parser.add_argument("--longest", type=float, default=LONGEST, help="seconds after which a run is ended")
parser.add_argument("--user", type=int, help="the number of the user that runs the command; root can choose")
parser.add_argument("--no-namespaces", action="store_true", help="forbid namespaces, as most containers do")
parser.add_argument("--json", type=Path, help="a file to which the results are added, by situation")
parser.add_argument("--list", action="store_true", help="only say what each attack does")
given = parser.parse_args()
chosen = [one for one in ATTACKS.values() if not given.names or {one.name, one.kind} & set(given.names)]
if given.list:
    for attack in chosen:
        print(f"{attack.name:36} {attack.kind:12} {attack.sentence}")
    sys.exit()

results: dict[str, dict[str, str]] = {}
for attack in chosen:
    ran = run(attack, given.longest, given.user, namespaces=not given.no_namespaces)
    problems = "; ".join(ran.problems) or "passed"
    results.setdefault(attack.kind, {})[attack.name] = problems
    status = "-" if ran.status is None else ran.status
    line = f"{attack.name:36} {attack.kind:12} {status!s:>4} {ran.seconds:5.1f} s  {problems:40} | {ran.last}"
    print(line, flush=True)
if given.json:
    situation = "root" if given.user is None else "another user"
    situation += ", no namespaces" if given.no_namespaces else ""
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    for kind, of_kind in results.items():
        known.setdefault(situation, {}).setdefault(kind, {}).update(of_kind)
    given.json.write_text(json.dumps(known, indent=1) + "\n")
sys.exit(any(problems != "passed" for of_kind in results.values() for problems in of_kind.values()))
