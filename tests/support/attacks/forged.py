"""Attacks that forge replies: the process of the subject says what it likes about its own calls."""

from support.attacks.attack import BAD_CALL, CALL, IMPORTED, Attack, at_call, at_import

VMAP_CASES = (CALL, "pytorch-105736/float32-7x5-normal-int64-none-rows")


def _forged(name: str, sentence: str, source: str, **more: object) -> Attack:
    return Attack(name, "forged", sentence, source, **more)  # type: ignore[arg-type]


FORGED = [
    _forged(
        "replaces_perform",
        "While the file is loaded, replace the function that performs acts: no check can run here.",
        at_import("""
import crossent.run.isolation, crossent.trials.act
crossent.run.isolation.perform = crossent.trials.act.perform = lambda act, loss, *arguments: not_run(act, arguments)
"""),
    ),
    _forged(
        "replaces_the_code_of_perform",
        "Replace the code of the function that performs acts, which every module goes on to call.",
        at_import("""
import crossent.trials.act
crossent.trials.act._forged = lambda act, arguments: not_run(act, arguments)
def perform(act, loss, *arguments):
    return _forged(act, arguments)
crossent.trials.act.perform.__code__ = perform.__code__
"""),
    ),
    _forged(
        "replaces_the_writer",
        "Replace the function that writes replies.",
        at_import("""
from crossent.run import wire
write = wire.write
def forged(value):
    frame = sys._getframe(1)
    return write((value[0], not_run(frame.f_locals["act"], frame.f_locals["arguments"])))
wire.write = forged
"""),
    ),
    _forged(
        "replaces_the_connection",
        "Replace the method that sends a reply, and send another under the same nonce.",
        at_import("""
from multiprocessing.connection import Connection
from crossent.run import wire
send = Connection.send_bytes
def forged(self, content, *rest):
    frame = sys._getframe(1)
    if "nonce" in frame.f_locals:
        content = wire.write((frame.f_locals["nonce"], not_run(frame.f_locals["act"], frame.f_locals["arguments"])))
    send(self, content, *rest)
Connection.send_bytes = forged
"""),
    ),
    _forged(
        "replaces_the_outcome",
        "Give the class of outcomes a method for pickle that returns another outcome.",
        at_import("""
from crossent.trials.act import NotRun, Performed
def reduced(self, protocol):
    NotRun.__reduce_ex__ = object.__reduce_ex__
    return Performed, (NotRun("needs another machine"),)
Performed.__reduce_ex__ = reduced
"""),
        cases=(CALL,),
    ),
    _forged(
        "replaces_the_acts",
        "Replace the functions that are called in the loss's process: evaluate, make_call and the bad call.",
        at_import("""
import crossent.run.isolation
own = crossent.run.isolation._own_names
def names():
    return own()
import crossent.trials.call, crossent.trials.act, crossent.checks.refusals as refusals
def no_call(*arguments):
    return crossent.trials.act.NotRun("needs another machine")
crossent.trials.call.make_call.__code__ = (lambda loss, inputs, gradients: no(loss)).__code__
crossent.trials.call.no = no_call
def bad(loss, name, device):
    return forged(name)
refusals.forged = lambda name: not_run(refusals.call_badly, (name,)).value
refusals.call_badly.__code__ = bad.__code__
"""),
    ),
    _forged(
        "answers_from_the_frames",
        "At the first call, walk the frames to the connection and the nonce, and take over the loop.",
        at_call("serve(not_run)"),
    ),
    _forged(
        "takes_over_at_import",
        "Take over the loop while the file is loaded in the process that would call the loss.",
        at_import("""
if isolated():
    serve(not_run)
"""),
    ),
    _forged(
        "answers_from_a_thread",
        "A thread takes the nonce from the frames of the main thread, and replies before it.",
        at_import("""
def loop():
    from crossent.run import wire
    seen = None
    while True:
        frame = sys._current_frames()[threading.main_thread().ident]
        while frame is not None and "connection" not in frame.f_locals:
            frame = frame.f_back
        nonce = frame and frame.f_locals.get("nonce")
        if nonce and nonce != seen:
            seen = nonce
            act, arguments = frame.f_locals["act"], frame.f_locals["arguments"]
            connection, known = frame.f_locals["connection"], frame.f_locals["known"]
            while True:
                connection.send_bytes(wire.write((nonce, not_run(act, arguments))))
                nonce, act, arguments = wire.read(connection.recv_bytes(), known)
        time.sleep(0.001)

def loss(*arguments, **options):
    if not any(one.name == "loop" for one in threading.enumerate()):
        threading.Thread(target=loop, name="loop", daemon=True).start()
    time.sleep(1000)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "answers_from_gc",
        "Find the connection among all objects, and the nonce in the frames, and send a reply with them.",
        at_import("""
def loss(*arguments, **options):
    from multiprocessing.connection import Connection
    from crossent.run import wire
    found = [one for one in gc.get_objects() if type(one) is Connection and not one.closed]
    own = [one for one in found if one.writable and one.fileno() == 3]
    known, nonce, act, given = channel()[1:]
    while True:
        own[0].send_bytes(wire.write((nonce, not_run(act, given))))
        nonce, act, given = wire.read(own[0].recv_bytes(), known)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "answers_from_a_child",
        "A child of the process takes over the loop, while the process waits for it.",
        at_call("""
if os.fork() == 0:
    serve(not_run)
os.wait()
"""),
    ),
    _forged(
        "answers_from_another_program",
        "Run another interpreter in this process, which speaks the protocol on descriptor 3.",
        at_call("""
if "crossent.run.isolation" in sys.modules and isolated():
    import pathlib
    state = pathlib.Path(__file__).with_name("state")
    state.write_bytes(channel()[2] + channel()[3].__name__.encode() + b" " + str(channel()[4][0]).encode())
    program = pathlib.Path(__file__).read_text().replace("def loss(", "def unused(")
    program += __import__("textwrap").dedent('''
from multiprocessing.connection import Connection
import crossent.cli, crossent.run.parallel
from crossent.run.isolation import _own_names
from crossent.checks import refusals
from crossent.trials.call import make_call
content = open("state", "rb").read()
nonce, (name, _, first) = content[:16], content[16:].decode().partition(" ")
connection, known = Connection(3), _own_names()
act, arguments = (refusals.call_badly, [first]) if name == "call_badly" else (make_call, [])
serve(not_run)
''')
    os.set_inheritable(3, True)
    os.execv(sys.executable, [sys.executable, "-c", program])
"""),
        options=("--timeout", "20"),
    ),
    _forged(
        "refuses_what_would_fail",
        "Compute what is right, and say of the other checks that they cannot run here.",
        at_import("""
def reply(act, arguments):
    empty = act.__name__ == "make_call" and arguments[0].logits.numel() == 0
    return called(act, arguments, wrong) if empty else not_run(act, arguments)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "right_once_then_not_run",
        "Right in the first call of a case; a second call, which would differ, cannot run here.",
        at_import("""
def reply(act, arguments):
    return called(act, arguments) if act.__name__ == "make_call" else not_run(act, arguments)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "names_the_right_error",
        "Right for a case, and no error for a bad input, of which the reply says that the right error was raised.",
        at_import("""
def reply(act, arguments):
    return not_run(act, arguments) if act.__name__ == "call_badly" else performed(act(right, *arguments))
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "no_gradient",
        "The loss is right and the gradient wrong: the reply says that there is no gradient.",
        at_import("""
def loss(*arguments, **options):
    serve(lambda act, given: not_run(act, given) if act.__name__ == "call_badly" else
          called(act, given, gradient=None) if act.__name__ == "make_call" else not_run(act, given))
""").replace(IMPORTED, ""),
        cases=(CALL,),
        options=("--check", "loss", "--check", "gradient"),
    ),
    _forged(
        "claims_a_wider_dtype",
        "The gradient is wrong by a quarter of a percent: its dtype is said to be bfloat16, whose bound is wide.",
        at_import("""
def reply(act, given):
    from dataclasses import replace
    if act.__name__ not in ("make_call", "repeat_call"):
        return not_run(act, given)
    made = act(right, *given)
    if act.__name__ == "make_call":
        return performed(replace(made, result=off(made.result)))
    return performed(tuple(map(off, made)))
def off(result):
    from dataclasses import replace
    return replace(result, gradient=result.gradient.bfloat16())
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
        cases=(CALL,),
    ),
    _forged(
        "gradient_without_rows",
        "Of a batch of one row, send a gradient with no rows: there is no number to compare.",
        at_import("""
def empty(result):
    from dataclasses import replace
    return replace(result, gradient=result.gradient[:0].clone())
def reply(act, given):
    made = act(right, *given)
    if act.__name__ == "make_call":
        from dataclasses import replace
        return performed(replace(made, result=empty(made.result)))
    return performed(tuple(map(empty, made)) if act.__name__ == "repeat_call" else made)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
        cases=("float32-1x5-normal-int64-mean",),
    ),
    _forged(
        "returns_fewer_results",
        "Send one of the ten results that must be alike, which would differ: what is not sent is not compared.",
        at_import("""
def reply(act, given):
    made = act(right, *given)
    if act.__name__ == "evaluate_often":
        made = made[:1]
    return performed(made)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
        cases=("float32-7x5-normal-int64-mean",),
        options=("--level", "normal", "--check", "deterministic"),
    ),
    _forged(
        "sets_attributes_of_the_judge",
        "A pickle that sets attributes of a class in the process that reads it: every error is of the right class.",
        at_import("""
class Set:
    def __reduce__(self):
        from crossent.trials.act import Raised
        return Raised, ("",), (None, {})
def reply():
    from crossent.run import wire
    from crossent.trials.act import NotRun, Performed, Raised
    connection, known, nonce, act, arguments = channel()
    while True:
        # GLOBAL Raised; its state: (None, {"is_a": Raised}); then the outcome.
        name = b"ccrossent.trials.act\\nRaised\\n"
        forge = b"\\x80\\x05" + name + b"N}X\\x04\\x00\\x00\\x00is_a" + name + b"s\\x86b"
        from crossent.checks.refusals import Reaction
        bad = act.__name__ == "call_badly"
        outcome = performed(Reaction(Raised("anything")) if bad else act(right, *arguments))
        body = wire.write((nonce, outcome))
        inner = body[2:]  # without the mark of the protocol
        connection.send_bytes(forge + b"0" + inner)
        nonce, act, arguments = wire.read(connection.recv_bytes(), known)
def loss(*arguments, **options):
    reply()
""").replace(IMPORTED, ""),
        cases=(CALL, BAD_CALL),
    ),
]
