"""Attacks with the JSON header of a reply: deep, long, contradictory, or with invalid numbers."""

from support.attacks.attack import BAD_CALL, CALL, IMPORTED, Attack, at_import

COMPILED = ("--level", "normal", "--check", "compile", "--timeout", "60")
HEADERS = '''
def message(text, raw=b"", length=None):
    """Return a reply with this header. `length` is a false length of the header, or None for the right length."""
    return struct.pack("!Q", len(text) if length is None else length) + text + raw


def changed(made, old, new):
    """Replace a text in the header of a reply, and return the changed reply."""
    length = struct.unpack("!Q", made[:8])[0]
    text, raw = made[8 : 8 + length], made[8 + length :]
    if old not in text:
        raise ValueError(f"there is no {old} in {text}")
    return message(text.replace(old, new), raw)


def right_reply(act, given):
    return written(called(act, given))


def gradient(given, **options):
    """Return a gradient with this description, which need not be true."""
    logits = given[0].input
    return Claims(b"\\0" * 16 * logits.numel(), **{"shape": tuple(logits.shape), "stride": logits.stride(), **options})

'''


def _header(name: str, sentence: str, expression: str, kind: str = "lost", before: str = "", **more: object) -> Attack:
    reply = f"serve(lambda act, given: {expression})"
    source = at_import(f"{HEADERS}{before}\ndef loss(*arguments, **options):\n    {reply}\n").replace(IMPORTED, "")
    return Attack(name, kind, sentence, source, **{"cases": (CALL,), **more})  # type: ignore[arg-type]


def _gradient(name: str, sentence: str, form: str) -> Attack:
    return _header(name, sentence, f"called(act, given, gradient=gradient(given, {form}))")


HEADER = [
    _header("nests_tuples", "Send a tuple nested 100,000 deep.", "message(b'{\"value\":' + b'{\"tuple\":[' * 100_000)"),
    _header(
        "nests_whole_tuples",
        "Send a tuple nested 900 deep, and closed.",
        "message(b'{\"raised\":null,\"state\":[],\"value\":' + b'{\"tuple\":[' * 900 + b']}' * 900 + b'}')",
    ),
    _header(
        "nests_classes",
        "Send an exception whose message is an exception, 20,000 deep.",
        "message(b'{\"value\":null,\"state\":[],\"raised\":' + part * 20_000 + b'1' + b'}}' * 20_000 + b'}')",
        before='part = b\'{"class":"Raised","fields":{"message":\'',
    ),
    _header(
        "says_everything_twice",
        "Send each name of the header twice: first with a right value, then with a reply that no check can run here.",
        'message(b\'{"value":null,"value":{"class":"NotRun","class":"NotRun","fields":{"reason":"x"}},'
        '"raised":null,"raised":null,"state":[]}\')',
        "forged",
    ),
    _header(
        "header_of_no_number",
        "Send a shape of NaN and infinities.",
        "changed(right_reply(act, given), b'[7, 5]', b'[NaN, -Infinity]')",
    ),
    _header(
        "header_of_a_long_number",
        "Send a number of 100,000 digits in a shape.",
        "changed(right_reply(act, given), b'[7, 5]', b'[7, ' + b'5' * 100_000 + b']')",
    ),
    _header(
        "header_of_a_large_exponent",
        "Send a number of 1e999999 in a shape.",
        "changed(right_reply(act, given), b'[7, 5]', b'[1e999999, 5]')",
    ),
    _header(
        "header_of_half_characters",
        "Send half of a surrogate pair as the name of a field, and as the name of a dtype.",
        "changed(changed(right_reply(act, given), b'\"float32\"', b'\"\\\\ud800\"'), b'\"shared\"', b'\"\\\\udfff\"')",
    ),
    _header("header_that_is_not_unicode", "Send bytes that are not text.", "message(b'\\xff\\xfe{\\x00' * 1000)"),
    _header("header_of_null_bytes", "Send a header of zeros.", "message(bytes(10_000))"),
    _header("header_of_a_list", "Send a list instead of an object.", "message(b'[1, 2, 3]')"),
    _header(
        "header_beyond_the_message",
        "Announce a header that is longer than its message.",
        "message(b'{\"value\":null}', length=2**20)",
    ),
    _header("header_of_2_to_63_bytes", "Announce a header of 2^63 bytes.", "message(b'{}', length=2**63)"),
    _header("message_of_no_bytes", "Send an empty message.", "b''"),
    _header("message_of_7_bytes", "Send a message that ends within the length of its header.", "bytes(7)"),
    _header(
        "class_of_the_judge",
        "Send the name of a class that only the main process uses.",
        "changed(right_reply(act, given), b'\"Call\"', b'\"Trial\"')",
    ),
    _header(
        "class_with_a_method_for_a_field",
        "Send a field with the name of a property.",
        "changed(right_reply(act, given), b'\"loss\"', b'\"digest\"')",
    ),
    _header(
        "two_kinds_at_once",
        "Send a value that is both a tensor and a class.",
        'changed(right_reply(act, given), b\'{"class": "Call"\', b\'{"tensor": [], "class": "Call"\')',
    ),
    _header(
        "tensor_of_two_parts",
        "Send a tensor whose description has only two parts.",
        'changed(right_reply(act, given), b\'"float32", [], [], 0, "cpu"\', b\'"float32"\')',
    ),
    _gradient("gradient_of_float8", "Send a gradient of float8_e4m3fn.", "dtype='float8_e4m3fn'"),
    _gradient("gradient_of_complex64", "Send a gradient of complex64.", "dtype='complex64'"),
    _gradient("gradient_of_qint8", "Send a gradient of qint8.", "dtype='qint8'"),
    _gradient("gradient_of_bits8", "Send a gradient of bits8.", "dtype='bits8'"),
    _gradient("gradient_of_bool", "Send a gradient of truth values.", "dtype='bool'"),
    _gradient("gradient_that_overlaps", "Send a gradient whose rows overlap in memory.", "stride=(1, 1)"),
    _gradient(
        "gradient_of_no_rows_far_away",
        "Send a gradient of shape (0, 5) with strides of 2^61.",
        "shape=(0, 5), stride=(2**61, 2**61)",
    ),
    _gradient("gradient_of_no_rows_of_2_to_61", "Send a gradient of shape (0, 2^61).", "shape=(0, 2**61)"),
    _gradient(
        "gradient_far_into_its_memory",
        "Send a gradient of shape (0, 5) at the offset 2^61.",
        "shape=(0, 5), offset=2**61",
    ),
    _gradient(
        "gradient_in_many_dimensions", "Send a gradient in 100 dimensions.", "shape=(1,) * 100, stride=(1,) * 100"
    ),
    _gradient("gradient_on_another_device", "Send a gradient on a device that does not exist.", "device='cuda:7'"),
    _gradient("gradient_on_no_device", "Send a gradient on a device that is a path.", "device='../../x'"),
    _header(
        "gives_back_words",
        "Say that the options have wrong types after the call.",
        "called(act, given, given=type(given[0])(given[0].input, given[0].target, "
        "{'weight': 'x', 'reduction': 7}, given[0].upstream))",
    ),
    _header(
        "gives_back_more",
        "Say that the arguments have another size after the call, and no weights.",
        "called(act, given, given=type(given[0])(torch.zeros(9, 9), torch.zeros(()), {}, torch.zeros(0)))",
    ),
    _header(
        "leaves_out_gradients_of_samples",
        "Be right, but under vmap send the losses without their gradients, so that no gradient is compared.",
        "performed(act(right, *given)[:1] if act.__name__ == 'gradients_by_vmap' else act(right, *given))",
        "forged",
        cases=("float32-7x5-normal-int64-none-rows",),
        options=("--level", "normal", "--check", "vmap"),
    ),
    _header(
        "has_no_deterministic_kernel",
        "Under torch.use_deterministic_algorithms, reply that torch has no deterministic kernel: the check is skipped.",
        "performed(raised=Raised('RuntimeError: x', text='x does not have a deterministic implementation, but you set "
        "torch.use_deterministic_algorithms', classes=('builtins.RuntimeError',)))"
        " if act.__name__ == 'evaluate_often' else performed(act(right, *given))",
        "claims",
        before="from crossent.trials.act import Raised\n",
        cases=("float32-7x5-normal-int64-mean",),
        options=("--level", "normal", "--check", "deterministic"),
        statuses=(0,),
    ),
    _header(
        "leaves_code_for_the_judge",
        "Fill the folder of compiled code with pickles that patch the main process; reply that torch cannot compile.",
        "performed(NotRun(fill(act, given))) if act.__name__ == 'evaluate_compiled' else performed(act(right, *given))",
        "forged",
        before='''
from crossent.trials.act import NotRun
class Replaces:
    def __reduce__(self):
        lines = "import crossent.run.judge as judge, crossent.trials.act as act",
        lines += "judge._found.__code__ = (lambda trial, check: []).__code__",
        lines += "act.NotRun.__eq__ = lambda self, other: True",
        return exec, ("; ".join(lines),)
def fill(act, given):
    """Compile as the check does, and replace the files in the folder."""
    act(torch.nn.functional.cross_entropy, *given)
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    content, filled = pickle.dumps(Replaces()), 0
    for folder, _, names in os.walk(cache_dir()):
        for name in names:
            if "fxgraph" in folder or "aotautograd" in folder:
                filled += 1
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(content)
    if not filled:
        raise FileNotFoundError(cache_dir())
    return "needs a C++ compiler"
''',
        options=COMPILED,
        cases=("float32-7x5-normal-int64-mean-weighted-ignored",),
    ),
    _header(
        "reads_the_input_of_the_command",
        "Read the standard input of the command.",
        "written(performed(act(wrong, *given)))",
        before='assert sys.stdin is None or os.readlink("/proc/self/fd/0") == "/dev/null"\n',
        cases=(CALL, BAD_CALL),
    ),
]
