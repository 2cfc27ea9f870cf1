"""Attacks that forge replies: the process of the subject sends the main process false results of its calls."""

from support.attacks.attack import BAD_CALL, CALL, IMPORTED, Attack, at_call, at_import

VMAP_CASES = (CALL, "pytorch-105736/float32-7x5-normal-int64-none-rows")


def _forged(name: str, sentence: str, source: str, **more: object) -> Attack:
    return Attack(name, "forged", sentence, source, **more)  # type: ignore[arg-type]


FORGED = [
    _forged(
        "replaces_perform",
        "While the file is loaded, make the function that performs acts return that no check can run here.",
        at_import("""
from crossent.run.isolation import process
from crossent.trials import act as acts
process.perform = acts.perform = lambda act, loss, *arguments: not_run(act, arguments)
"""),
    ),
    _forged(
        "replaces_the_code_of_perform",
        "Replace the code object of the function that performs acts, so that every module calls the new code.",
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
        "Replace the function that writes replies by a function that writes a forged reply.",
        at_import("""
from crossent.run.isolation import wire
def forged(outcome, most):
    frame = sys._getframe(1)
    return attempt(lambda: not_run(frame.f_locals["act"], frame.f_locals["arguments"]))
wire.write_reply = forged
"""),
    ),
    _forged(
        "replaces_the_connection",
        "Replace the function that sends a reply, and send another reply.",
        at_import("""
from crossent.run.isolation import wire
send = wire.send
def forged(stream, message, *rest):
    frame = sys._getframe(1)
    if "connection" in frame.f_locals:
        message = attempt(lambda: not_run(frame.f_locals["act"], frame.f_locals["arguments"]))
    send(stream, message, *rest)
wire.send = forged
"""),
    ),
    _forged(
        "replaces_the_outcome",
        "Give the class of outcomes a constant value, which says that no check can run here.",
        at_import("""
from crossent.trials.act import NotRun, Performed
Performed.value = property(lambda self: NotRun("needs another machine"), lambda self, value: None)
"""),
        cases=(CALL,),
    ),
    _forged(
        "replaces_the_acts",
        "Replace the acts in the process of the loss: make_call and the call with a bad input.",
        at_import("""
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
        "At the first call, find the connection in the stack frames, and take over the loop.",
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
        "A thread takes the connection from the stack frames of the main thread, and replies first.",
        at_import("""
def loop():
    from crossent.run.isolation import wire
    while True:
        frame = sys._current_frames()[threading.main_thread().ident]
        while frame is not None and "connection" not in frame.f_locals:
            frame = frame.f_back
        if frame is not None and "act" in frame.f_locals:
            connection, known, act, arguments = (
                frame.f_locals[name] for name in ("connection", "known", "act", "arguments")
            )
            while True:
                wire.send(connection, attempt(lambda: not_run(act, arguments)))
                act, arguments, _ = wire.read(wire.receive(connection), known)
        time.sleep(0.001)

def loss(*arguments, **options):
    if not any(one.name == "loop" for one in threading.enumerate()):
        threading.Thread(target=loop, name="loop", daemon=True).start()
    time.sleep(1000)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "answers_from_gc",
        "Find the connection among all objects of the process, and send replies over it.",
        at_import("""
def loss(*arguments, **options):
    from crossent.run.isolation import wire
    (own,) = (one for one in gc.get_objects() if type(one) is socket.socket and one.fileno() == 3)
    known, act, given = channel()[1:]
    while True:
        wire.send(own, attempt(lambda: not_run(act, given)))
        act, given, _ = wire.read(wire.receive(own), known)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "answers_from_a_child",
        "A child of the process takes over the loop, while the process waits for the child.",
        at_call("""
if os.fork() == 0:
    serve(not_run)
os.wait()
"""),
    ),
    _forged(
        "answers_from_another_program",
        "Replace this process by another interpreter, which speaks the protocol on descriptor 3.",
        at_call("""
if isolated():
    import pathlib
    state = pathlib.Path(__file__).with_name("state")
    state.write_text(channel()[2].__name__ + " " + str(channel()[3][0]))
    program = pathlib.Path(__file__).read_text().replace("def loss(", "def unused(")
    program += __import__("textwrap").dedent('''
import crossent.cli, crossent.run.parallel
from crossent.run.isolation.process import _own_names
from crossent.checks import refusals
from crossent.trials.call import make_call
name, _, first = open("state").read().partition(" ")
connection, known = socket.socket(fileno=3), _own_names()
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
        "Reply to every act that it cannot run here, except to a call on which the wrong loss passes.",
        at_import("""
def reply(act, arguments):
    empty = act.__name__ == "make_call" and arguments[0].input.numel() == 0
    return called(act, arguments, wrong) if empty else not_run(act, arguments)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
    ),
    _forged(
        "right_once_then_not_run",
        "Be right in the first call of a case, and reply that a second call, which would differ, cannot run here.",
        at_import("""
def reply(act, arguments):
    return called(act, arguments) if act.__name__ == "make_call" else not_run(act, arguments)
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
    ),
    Attack(
        "names_the_right_error",
        "claims",
        "Be right for a case. For a bad input, raise no error, but reply that the right error was raised.",
        at_import("""
def reply(act, arguments):
    return not_run(act, arguments) if act.__name__ == "call_badly" else performed(act(right, *arguments))
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
        statuses=(0,),
    ),
    _forged(
        "no_gradient",
        "The loss is right and the gradient is wrong. Reply without the gradient.",
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
        "The gradient is wrong by a quarter of a percent. Send it as bfloat16, whose error bound is wide.",
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
        "For a batch of one row, send a gradient without rows, so that there is no number to compare.",
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
        "Send only one of ten results, which must be equal but would differ, so that nothing is compared.",
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
        "names_attributes_of_the_judge",
        "Send an exception with an extra attribute, which would replace a method: every class of error would be right.",
        at_import("""
def reply(act, given):
    if act.__name__ != "call_badly":
        return performed(act(right, *given))
    text = written(not_run(act, given))[8:].replace(b'"message":', b'"is_a": true, "message":')
    return struct.pack("!Q", len(text)) + text
def loss(*arguments, **options):
    serve(reply)
""").replace(IMPORTED, ""),
        cases=(CALL, BAD_CALL),
    ),
]
