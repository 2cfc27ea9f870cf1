"""Attacks that stall the run: endless replies, values that take forever to read, and stopped processes."""

from support.attacks.attack import CALL, IMPORTED, Attack, at_call, at_import

NONE = "float32-7x5-normal-int64-none-rows"
LARGE = "verl-2899/float32-2x129920-outlier-int64-none-rows"


def _stalls(name: str, sentence: str, source: str, **more: object) -> Attack:
    return Attack(name, "stalls", sentence, source, **more)  # type: ignore[arg-type]


def _reply(expression: str, before: str = "") -> str:
    return at_import(
        f"{before}\ndef loss(*arguments, **options):\n    serve(lambda act, given: {expression})\n"
    ).replace(IMPORTED, "")


STALLS = [
    _stalls(
        "announces_2_gb",
        "Announce 2 GB, and send nothing.",
        at_call("pipes(struct.pack('!Q', 2**31 - 1))\ntime.sleep(1000)"),
    ),
    _stalls("sends_one_byte", "Send one byte, and nothing more.", at_call("pipes(b'\\0')\ntime.sleep(1000)")),
    _stalls(
        "drips",
        "Announce a megabyte, and send a byte each second.",
        at_call("pipes(struct.pack('!Q', 2**20))\nwhile True:\n    pipes(b'x')\n    time.sleep(1)"),
    ),
    _stalls(
        "sends_without_end",
        "Announce 2 GB, and send 20 MB a second.",
        at_call("pipes(struct.pack('!Q', 2**31 - 1))\nwhile True:\n    pipes(b'x' * 2**18)\n    time.sleep(0.0125)"),
    ),
    _stalls(
        "names_much_state",
        "Send a hundred thousand names of changed state.",
        _reply("performed(act(right, *given), changed_state=tuple(map(str, range(100_000))))"),
    ),
    _stalls(
        "says_much",
        "Send a message of a megabyte that is slow to search for links, names and shapes.",
        _reply("performed(raised=Raised('http://a.b/(' * 80_000))", "from crossent.trials.act import Raised"),
    ),
    _stalls(
        "stops_itself",
        "Stop this process by SIGSTOP.",
        at_call("os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)"),
    ),
    _stalls(
        "stops_the_fork_server",
        "Stop the parent process, and exit.",
        at_call("os.kill(parents()[0], signal.SIGSTOP)\nos._exit(1)"),
    ),
    _stalls(
        "stops_the_worker",
        "Stop every process between the parent and the command.",
        at_call("for pid in parents()[1:-1]:\n    os.kill(pid, signal.SIGSTOP)\ntime.sleep(1000)"),
    ),
    _stalls(
        "stops_the_command", "Stop the command.", at_call("os.kill(parents()[-1], signal.SIGSTOP)\ntime.sleep(0.5)")
    ),
    _stalls(
        "stops_everything",
        "Stop every process above, while the file is loaded.",
        at_import(
            "for pid in parents():\n    with contextlib.suppress(OSError):\n        os.kill(pid, signal.SIGSTOP)"
        ),
    ),
    _stalls(
        "expands_the_loss",
        "Return a loss of 2^33 numbers, which is one number in memory.",
        at_call("return wrong(input, target).expand(2**33)"),
    ),
    _stalls(
        "claims_16_gb",
        "Send a gradient of 4 bytes that claims a shape of 16 GB.",
        _reply("called(act, given, gradient=Claims(shape=(2**32,)))"),
    ),
    _stalls(
        "claims_one_number_many_times",
        "Send a gradient of one number that claims to be 2^40 numbers.",
        _reply("called(act, given, gradient=Claims(shape=(2**40,), stride=(0,)))"),
    ),
    _stalls(
        "claims_no_numbers_in_many_dimensions",
        "Send a gradient of no numbers in a thousand dimensions.",
        _reply("called(act, given, gradient=Claims(shape=(0,) * 1000, stride=(1,) * 1000))"),
    ),
    _stalls(
        "reads_no_request",
        "Reply to the first act, and read no further request: a large request does not fit into the socket.",
        at_call(
            """connection, known, act, given = channel()
from crossent.run.isolation import wire
wire.send(connection, written(called(act, given)))
time.sleep(1000)"""
        ),
        cases=(LARGE,),
    ),
    _stalls(
        "is_just_in_time",
        "Take nine tenths of the time limit for each act.",
        _reply("(time.sleep(4.5), performed(act(wrong, *given)))[1]"),
        cases=(CALL, NONE),
    ),
    _stalls(
        "is_just_in_time_in_each_act",
        "Return a right loss, and take nine tenths of the time limit for each act.",
        _reply("(time.sleep(4.5), performed(act(right, *given)))[1]"),
        cases=(CALL,),
        options=("--level", "normal"),
    ),
    _stalls(
        "is_just_in_time_once",
        "Reply just in time, and hang in each further act.",
        _reply("(time.sleep(4.5 if act.__name__ == 'make_call' else 1000), performed(act(right, *given)))[1]"),
        cases=(CALL,),
    ),
    _stalls(
        "is_slow_to_load",
        "Take nine tenths of the time limit to load, in each process.",
        at_import("time.sleep(4.5)").replace(IMPORTED, "\ndef loss(*arguments, **options):\n    os._exit(1)\n"),
        statuses=(1, 2),
    ),
    _stalls(
        "asks_for_a_huge_memo",
        "Send a pickle that stores an object at place 2^28 of its memo.",
        at_call(
            """content = b'\\x80\\x04Nr\\x00\\x00\\x00\\x10.'
pipes(struct.pack('!Q', len(content)) + content)
time.sleep(1000)"""
        ),
        cases=(CALL,),
    ),
    _stalls(
        "prints_without_end",
        "Print without end.",
        at_call("while True:\n    os.write(1, b'x' * 2**20)"),
        cases=(CALL,),
    ),
    _stalls(
        "forks_without_end",
        "Start a fork bomb: each process starts other processes, until the system refuses.",
        at_call(
            """for _ in range(12):
    with contextlib.suppress(OSError):
        os.fork()
time.sleep(1000)"""
        ),
        cases=(CALL,),
    ),
    _stalls(
        "takes_16_gb",
        "Take 16 GB of memory, in as many processes.",
        at_call(
            """for _ in range(4):
    os.fork()
taken = torch.ones(2**28)
time.sleep(1000)"""
        ),
        cases=(CALL,),
    ),
]
