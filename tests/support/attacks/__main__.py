"""Run attacks and print a table: `python -m support.attacks [NAME or KIND ...]`, in tests/. See --help.

The exit status is 1 if an attack succeeds, and 0 otherwise.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from support.attacks import ATTACKS
from support.attacks.running import LONGEST, run


def main() -> bool:
    """Run the chosen attacks, print a line for each, and return whether one of them succeeds."""
    parser = argparse.ArgumentParser(description="Run attacks on the command, and print a table.")
    parser.add_argument("names", nargs="*", help="names or kinds of attacks; all by default")
    parser.add_argument("--longest", type=float, default=LONGEST, help="end a run after this many seconds")
    parser.add_argument("--user", type=int, help="the number of the user that runs the command; root can choose")
    parser.add_argument("--no-namespaces", action="store_true", help="forbid namespaces, as most containers do")
    parser.add_argument("--jobs", type=int, default=1, help="attacks that run at the same time")
    parser.add_argument("--json", type=Path, help="add the results to this JSON file")
    parser.add_argument("--list", action="store_true", help="print what each attack does, and run none")
    given = parser.parse_args()
    chosen = [one for one in ATTACKS.values() if not given.names or {one.name, one.kind} & set(given.names)]
    if given.list:
        for attack in chosen:
            print(f"{attack.name:36} {attack.kind:12} {attack.sentence}")
        return False

    one = partial(run, longest=given.longest, user=given.user, namespaces=not given.no_namespaces)
    results: dict[str, dict[str, str]] = {}
    # Each job has its own process, since a runner looks for descendants of its process after an attack.
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        for ran in pool.map(one, chosen):
            problems = "; ".join(ran.problems) or "passed"
            results.setdefault(ran.attack.kind, {})[ran.attack.name] = problems
            status = "-" if ran.status is None else ran.status
            name, kind = ran.attack.name, ran.attack.kind
            print(f"{name:36} {kind:12} {status!s:>4} {ran.seconds:5.1f} s  {problems:40} | {ran.last}", flush=True)
    if given.json:
        situation = "root" if given.user is None else "another user"
        situation += ", no namespaces" if given.no_namespaces else ""
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        for kind, of_kind in results.items():
            known.setdefault(situation, {}).setdefault(kind, {}).update(of_kind)
        given.json.write_text(json.dumps(known, indent=1) + "\n")
    return any(problems != "passed" for of_kind in results.values() for problems in of_kind.values())


if __name__ == "__main__":
    sys.exit(main())
