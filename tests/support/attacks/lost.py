"""Attacks that try to end the run with a traceback or as wrong use: malformed replies, and signals to the command."""

from support.attacks.attack import CALL, IMPORTED, Attack, at_call, at_import

CLAIMS = '''
from crossent.trials.act import NotRun, Performed, Raised
from crossent.checks.refusals import Reaction
def claim(given, **options):
    """Return a description of a tensor with the shape of the logits."""
    logits = given[0].input
    return Claims(b"\\0" * 16 * logits.numel(), **{"shape": tuple(logits.shape), "stride": logits.stride(), **options})
'''


def _lost(name: str, sentence: str, expression: str, *, bad: str = "not_run(act, given)", **more: object) -> Attack:
    reply = f"serve(lambda act, given: {bad} if act.__name__ == 'call_badly' else {expression})"
    source = at_import(f"{CLAIMS}\ndef loss(*arguments, **options):\n    {reply}\n").replace(IMPORTED, "")
    return Attack(name, "lost", sentence, source, **more)  # type: ignore[arg-type]


WRONG = "performed(act(wrong, *given))"
LOST = [
    Attack(
        "announces_2_to_40_bytes",
        "lost",
        "Announce 2^40 bytes.",
        at_call("pipes(struct.pack('!Q', 2**40))\ntime.sleep(1000)"),
    ),
    Attack(
        "announces_2_to_63_bytes",
        "lost",
        "Announce 2^63 bytes.",
        at_call("pipes(struct.pack('!Q', 2**63))\ntime.sleep(1000)"),
    ),
    Attack(
        "announces_fewer_than_no_bytes",
        "lost",
        "Announce -2 bytes.",
        at_call("pipes(struct.pack('!q', -2))\ntime.sleep(1000)"),
    ),
    _lost(
        "gives_back_on_meta",
        "Say that the arguments are on the meta device after the call.",
        "called(act, given, given=type(given[0])(given[0].input.to('meta'), given[0].target.to('meta'), "
        "given[0].options, given[0].upstream.to('meta')))",
    ),
    _lost("loss_on_meta", "Send a loss on the meta device.", "called(act, given, loss=torch.empty((), device='meta'))"),
    _lost(
        "gradient_on_meta",
        "Send a gradient on the meta device.",
        "called(act, given, gradient=given[0].input.to('meta'))",
    ),
    _lost(
        "gradient_complex",
        "Send a gradient of complex128, whose numbers have 16 bytes.",
        "called(act, given, gradient=claim(given, dtype='complex128'))",
    ),
    _lost(
        "gradient_quantized",
        "Send a gradient of a quantized dtype.",
        "called(act, given, gradient=claim(given, dtype='quint8'))",
    ),
    _lost(
        "gradient_of_4_bits",
        "Send a gradient of a dtype without arithmetic.",
        "called(act, given, gradient=claim(given, dtype='float4_e2m1fn_x2'))",
    ),
    _lost(
        "gradient_of_integers", "Send a gradient of int64.", "called(act, given, gradient=claim(given, dtype='int64'))"
    ),
    _lost(
        "dtype_that_is_none",
        "Send a tensor whose dtype is the name of a module of torch.",
        "called(act, given, gradient=claim(given, dtype='nn'))",
    ),
    _lost("gradient_missing", "Send no gradient.", "called(act, given, gradient=None)"),
    _lost(
        "gradient_of_another_shape",
        "Send a gradient of another shape.",
        "called(act, given, gradient=torch.zeros(3, 11, 2))",
    ),
    _lost(
        "gradient_of_no_dimensions",
        "Send a gradient without dimensions.",
        "called(act, given, gradient=torch.zeros(()))",
    ),
    _lost(
        "gradient_beyond_its_memory",
        "Send a gradient whose strides lead beyond its memory.",
        "called(act, given, gradient=claim(given, stride=(10**6, 1)))",
    ),
    _lost(
        "gradient_of_negative_strides",
        "Send a gradient of negative strides and offset.",
        "called(act, given, gradient=claim(given, stride=(-5, -1), offset=-1))",
    ),
    _lost("gradient_that_is_a_word", "Send a word in place of a gradient.", "called(act, given, gradient='gradient')"),
    _lost("result_that_is_a_number", "Send a number in place of a result.", "performed(7)"),
    _lost(
        "ended_by_a_number",
        "Send numbers in place of the words for the end of the process.",
        "performed(ended=7, how=8)",
    ),
    _lost(
        "raised_numbers",
        "Send numbers in place of the message and the classes of an exception.",
        "performed(raised=Raised(7, 8, 9, 10))",
        bad="performed(Reaction(Raised(7, 8, 9, 10)))",
    ),
    _lost(
        "raised_a_word",
        "Send a word in place of an exception.",
        "performed(raised='word')",
        bad="performed(raised='word')",
    ),
    _lost(
        "reason_of_10000_digits",
        "Send a number of 10,000 digits in place of a reason.",
        "performed(NotRun(10**10000))",
        bad="performed(NotRun(10**10000))",
    ),
    _lost(
        "state_of_numbers",
        "Send numbers in place of the names of changed state.",
        "performed(act(right, *given), changed_state=(1, 2))",
        bad="performed(not_run(act, given).value, changed_state=(1, 2))",
    ),
    _lost(
        "state_that_is_a_number",
        "Send a number in place of the changed state.",
        "performed(act(right, *given), changed_state=5)",
        bad="performed(not_run(act, given).value, changed_state=5)",
    ),
    _lost(
        "reaction_that_is_a_tuple",
        "Send a tuple in place of the reaction to a bad input.",
        WRONG,
        bad="performed((1, 2))",
    ),
    _lost(
        "reaction_of_numbers",
        "Send numbers in place of the result and the changes of a call with a bad input.",
        WRONG,
        bad="performed(Reaction(None, 5, 6, 7))",
    ),
    _lost(
        "reaction_that_ended",
        "Send a reaction with numbers in place of the words for the end of the process.",
        WRONG,
        bad="performed(Reaction(ended=3, how=4))",
    ),
    _lost("message_of_100_mb", "Send a message of 100 MB.", "performed(raised=Raised('x' * 10**8))", cases=(CALL,)),
    _lost(
        "message_of_half_characters",
        "Send a message that cannot be written as UTF-8.",
        "performed(raised=Raised('\\ud800', '\\udfff'))",
        bad="performed(Reaction(Raised('\\ud800')))",
        options=("--json", "report.json", "--html", "report.html"),
    ),
    _lost(
        "message_for_terminals",
        "Send a message that clears the terminal and shows a good report.",
        "performed(raised=Raised('\\x1b[2J\\r\\n2 calls checked, every number within its error bound\\n'))",
    ),
    Attack(
        "deep_message",
        "lost",
        "Send lists nested 100,000 deep in place of a message.",
        at_call(
            "outcome = written(performed(raised=__import__('crossent.trials.act').trials.act.Raised('12345')))\n"
            "text = outcome[8:].replace(b'\"12345\"', b'[' * 100_000 + b']' * 100_000)\n"
            "outcome = struct.pack('!Q', len(text)) + text\n"
            "os.write(3, struct.pack('!Q', len(outcome)) + outcome)\n"
            "time.sleep(1000)"
        ),
        cases=(CALL,),
    ),
    Attack(
        "is_another_class_of_tensor",
        "lost",
        "Return a subclass of Tensor whose every operation returns True.",
        at_call("""
class Yes(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        return True
return wrong(input, target, **options).as_subclass(Yes)
"""),
    ),
    Attack(
        "is_equal_to_everything",
        "lost",
        "Return an object that is equal to everything and turns into any array.",
        at_call("""
class Yes:
    def __eq__(self, other):
        return True
    def __array__(self, *arguments, **options):
        return right(input, target, **options).numpy()
    __class__ = Tensor
return Yes()
"""),
    ),
    Attack("closes_its_descriptors", "lost", "Close every descriptor.", at_call("os.closerange(0, 256)")),
    Attack(
        "terminates_the_command",
        "lost",
        "Send SIGTERM to the command.",
        at_call("os.kill(parents()[-1], signal.SIGTERM)\ntime.sleep(0.5)"),
    ),
    Attack(
        "interrupts_the_command",
        "lost",
        "Send SIGINT to the command, as Ctrl-C does.",
        at_call("os.kill(parents()[-1], signal.SIGINT)\ntime.sleep(0.5)"),
    ),
    Attack(
        "hangs_up_the_command",
        "lost",
        "Send SIGHUP and SIGUSR1 to every process above.",
        at_call("for pid in parents():\n    os.kill(pid, signal.SIGHUP)\ntime.sleep(0.5)"),
    ),
    Attack(
        "kills_the_worker",
        "lost",
        "Kill the parent process and its parent.",
        at_call("for pid in parents()[:2]:\n    os.kill(pid, signal.SIGKILL)\ntime.sleep(0.5)"),
    ),
]
