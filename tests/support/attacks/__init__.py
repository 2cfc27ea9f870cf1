"""Attacks on the command, each the file of a user with a wrong loss, and the run of one as a user would run it.

`python -m support.attacks NAME ...`, run in tests/, runs some or all and prints a table.

attack: what an attack is, and the lines that all files begin with; forged: replies; headers: the headers of replies;
loading: what is said while a file is loaded; memory: the processes above; stalls; lost: replies that nobody expects;
left: what stays behind; running: the run of one attack.
"""

from support.attacks.attack import Attack
from support.attacks.forged import FORGED
from support.attacks.headers import HEADER
from support.attacks.left import LEFT
from support.attacks.loading import LOADING
from support.attacks.lost import LOST
from support.attacks.memory import MEMORY
from support.attacks.stalls import STALLS

ATTACKS: dict[str, Attack] = {one.name: one for one in (*FORGED, *HEADER, *LOADING, *MEMORY, *STALLS, *LOST, *LEFT)}
