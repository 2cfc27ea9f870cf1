"""`python -m support.attacks [--longest S] [--user N] [NAME or KIND ...]`: run attacks, and print a table."""

import argparse

from support.attacks import ATTACKS
from support.attacks.running import LONGEST, run

parser = argparse.ArgumentParser()
parser.add_argument("names", nargs="*")
parser.add_argument("--longest", type=float, default=LONGEST)
parser.add_argument("--user", type=int)
parser.add_argument("--list", action="store_true")
given = parser.parse_args()
chosen = [one for one in ATTACKS.values() if not given.names or {one.name, one.kind} & set(given.names)]
for attack in chosen:
    if given.list:
        print(f"{attack.name:36} {attack.kind:12} {attack.sentence}")
        continue
    ran = run(attack, given.longest, given.user)
    problems = "; ".join(ran.problems) or "held"
    status = "-" if ran.status is None else ran.status
    print(
        f"{attack.name:36} {attack.kind:12} {status!s:>4} {ran.seconds:5.1f} s  {problems:40} | {ran.last}", flush=True
    )
