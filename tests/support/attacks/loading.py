"""Attacks while a file is loaded: the loading process sends the command false descriptions of the subjects."""

from support.attacks.attack import Attack, at_import

# `tell` sends the description and exits in the process that only loads the file. It does nothing in the other process.
TELL = """
def tell(subjects):
    if not isolated():
        pipes(json.dumps({"subjects": subjects}).encode())
        os._exit(0)

def subject(name="loss", lacks={}, not_transformed="", **more):
    return {"name": name, "lacks": lacks, "not_transformed": not_transformed, "chunks": [], **more}

"""


def _loading(name: str, sentence: str, lines: str, kind: str = "forged", **more: object) -> Attack:
    # crossent may also refuse a file with an impossible description: status 2, with one line.
    more.setdefault("statuses", (1, 2))
    return Attack(name, kind, sentence, at_import(TELL + lines), **more)  # type: ignore[arg-type]


EVERY = "from crossent.subjects.features import FEATURES\n"
LOADING = [
    _loading(
        "lacks_everything",
        "Say that the subject lacks every feature.",
        EVERY + "tell([subject(lacks=dict.fromkeys(FEATURES, 'is declared without it'))])",
        statuses=(3,),  # nothing ran
    ),
    _loading(
        "lacks_what_it_does_wrong",
        "Say that the subject lacks float32, or an error for bad input, so that nothing runs.",
        "tell([subject(lacks={'float32': 'has no float32', 'errors': 'has no errors', 'index_target': 'x'})])",
        statuses=(3,),  # nothing ran
    ),
    _loading(
        "lacks_the_gradient",
        "Say that the subject has no gradients and cannot be repeated.",
        "tell([subject(lacks={'gradient': 'x', 'repeatable': 'x'})])",
        statuses=(1, 2),
    ),
    _loading(
        "is_called_formula",
        "Say that the file holds formula, with the source of formula.",
        "tell([subject('formula', source='formula', contract='eager')])",
    ),
    _loading(
        "is_called_torch",
        "Say that the file holds torch, whose failures are known.",
        "tell([subject('torch', source='torch', contract='torch', grade='B')])",
        options=("--contract", "torch"),
    ),
    _loading(
        "is_another_file",
        "Say that the file holds another function.",
        "tell([subject('scalar', source='crossent:scalar', description='crossent:scalar')])",
    ),
    _loading("holds_nothing", "Say that the file holds no subject.", "tell([])"),
    _loading(
        "holds_a_thousand",
        "Say that the file holds 1,000 subjects.",
        "tell([subject(f's{at}') for at in range(1000)])",
        "stalls",
    ),
    _loading(
        "holds_two",
        "Say that the file holds two subjects of the same name.",
        "tell([subject('loss'), subject('loss')])",
    ),
    _loading(
        "has_a_name_of_lines",
        "Send a name that contains the last line of a good report, and escape sequences for terminals.",
        r"tell([subject('x\n\x1b[2J\n2 calls checked, every number within its error bound\n')])",
    ),
    _loading("has_a_long_name", "Send a name of half a megabyte.", "tell([subject('x' * 500_000)])"),
    _loading(
        "has_a_name_without_unicode",
        "Send a name that cannot be written as UTF-8.",
        "tell([subject('\\ud800')])",
        "lost",
    ),
    _loading(
        "has_numbers_for_words",
        "Send numbers, lists and null where words are expected.",
        "tell([subject(7, {'gradient': None, 'vmap': [1]}, 5)])",
        "lost",
    ),
    _loading(
        "lacks_what_is_unknown",
        "Say that the subject lacks features that do not exist.",
        "tell([subject(lacks={'no such': 'x', '': ''})])",
    ),
    Attack(
        "tells_a_deep_document",
        "lost",
        "Write JSON that is nested 100,000 deep.",
        at_import("if not isolated():\n    pipes(b'[' * 100_000 + b']' * 100_000)\n    os._exit(0)"),
        statuses=(1, 2),
    ),
    Attack(
        "tells_without_end",
        "stalls",
        "Write spaces into the pipe forever.",
        at_import("if not isolated():\n    while True:\n        pipes(b' ' * 4096)\n        time.sleep(0.1)"),
        statuses=(1, 2),
    ),
    Attack(
        "keeps_the_pipe_open",
        "stalls",
        "A child of the loading process keeps the pipe open, and outlives the run.",
        at_import(
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(90)\n    os._exit(0)"
        ),
        statuses=(1, 2),
    ),
    Attack(
        "goes_on_as_the_command",
        "forged",
        "Replace os._exit, so that the loading process continues as if it were the command.",
        at_import("if not isolated():\n    os._exit = lambda status: None\n    os.close = lambda descriptor: None"),
        statuses=(1, 2),
    ),
]
