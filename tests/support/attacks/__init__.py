"""Attacks on `crossent check`. An attack is a file with a wrong loss that tries to pass, or to harm the run.

`python -m support.attacks [NAME ...]`, in tests/, runs the attacks and prints a table.

attack   Attack: the file, its cases, and the expected exit status; the lines at the start of each file
forged   attacks with forged replies to the main process
headers  attacks with the header of a reply
loading  attacks while a file is loaded
memory   attacks on the memory, descriptors, locks and limits of the parent processes
stalls   attacks that stall the run
lost     attacks with malformed replies, and with signals to the command
left     attacks that leave processes or files behind
running  runs one attack as a user would
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
