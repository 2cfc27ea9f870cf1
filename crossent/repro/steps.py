"""Steps: what the scripts of `script` do with a subject, as text that needs torch and nothing else.

They call the functions of `snippets`, and are never filled in. What they are about stands before them by
name: `logits`, `target`, `options` and `upstream`, together `given`; and what `recipes` adds for a check.
A finding that is a number is about `result[part][index]`, which should be `exact`.
"""

# One call.
ONCE = "result = evaluate(*given)"
JUDGED = "verdict(*judged(result[part][index].item(), exact))"
SIGN = """
got = result[part][index].item()
verdict(*judged(got, 0.0 if got < 0 else got))
"""
ROW_SUM = """
row = result[part].movedim(min(1, logits.dim() - 1), -1)[index].tolist()
verdict(*judged(math.fsum(row) if all(map(math.isfinite, row)) else sum(row), exact))
"""
SHAPED = """shaped(result["loss"], *given)"""
ARGUMENTS = "before = arguments()"
SAME_ARGUMENTS = "changed(before, arguments())"
WATCHED = """
passed = []
result = evaluate(*given, watched)
"""
UNMARKED = """
for name, argument, wanted in passed:
    if argument.is_leaf and argument.grad is not None:
        verdict(True, f"it set the .grad of {name}")
    if argument.requires_grad != wanted:
        verdict(True, f"it changed the requires_grad of {name}")
"""
STATE = "before = state()"
SAME_STATE = "changed(before, state())"
ALIASED = """
for name, part in result.items():
    for argument in (logits, target, *filter(torch.is_tensor, options.values())):
        if part.numel() and part.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr():
            verdict(True, f"its {name} shares the memory of an argument, {argument.dtype} {tuple(argument.shape)}")
"""
CALL = """
try:
    result = evaluate(*given)
except SystemExit as error:
    verdict(True, f"raised {error!r}")
bits(result)  # which a meta device has none of
print(f"loss {result['loss']}")
"""
IGNORED_ROWS = """
axis = min(1, logits.dim() - 1)
x = logits.movedim(axis, -1)
ignored = target.long() == options.get("ignore_index", -100)
has_softmax = x.amax(-1).isfinite()  # the gradient of another one is NaN
rows = {"gradient": ignored & has_softmax}
if options["reduction"] == "none":
    rows["loss"] = ignored
for name, those in rows.items():
    part = result[name] if name == "loss" else result[name].movedim(axis, -1)
    if (part[those] != 0).any():
        verdict(True, f"the {name} of {int(those.sum())} ignored rows is not 0: {part[those].tolist()}")
"""

# Several calls, and derivatives.
REPEAT = """
first = bits(evaluate(*fresh(*given)))
try:
    evaluate(*other)  # other numbers come between
except Exception as error:
    print(f"of other numbers: {error!r}")
poison(*given)
if bits(evaluate(*fresh(*given))) != first:
    verdict(True, "a second call with the same arguments gives other bits")
"""
RELATED = """
for inputs in ways:  # the first's results follow from those of the others
    results = [evaluate(*fresh(*one)) for one in inputs]
    for result, one in zip(results, inputs):
        shaped(result["loss"], *one)
"""
FOLLOWS = """
exact = sum(share * results[which][part][place].item() for which, share, place in followed)
verdict(*judged(results[0][part][index].item(), exact))
"""
UNCHANGED = """
one, without = (result[part] for result in results)
if ((one == without) | (one.isnan() & without.isnan())).all():
    verdict(True, f"an option changes nothing: the {part} is the same without it")
"""
TWO_BACKWARDS = """
seen = []
first, alone = evaluate(*fresh(*given)), evaluate(*fresh(*other))
shaped(alone["loss"], *other)
last = evaluate(*fresh(*given), both)
if bits(last) != seen[0]:
    verdict(True, "the same graph, differentiated again, gives another gradient")
if seen[:2] != [bits(first), bits(alone)]:
    verdict(True, "two losses of the same logits have other bits than each of them alone")
"""
DETERMINISTIC = """
torch.use_deterministic_algorithms(True)
try:
    first = bits(evaluate(*fresh(*given)))
except RuntimeError as error:
    if "deterministic" in str(error) and "use_deterministic_algorithms" in str(error):
        unasked(error)
    raise
for call in range(2, 11):
    poison(*given)
    if bits(evaluate(*fresh(*given))) != first:
        verdict(True, f"call {call} of 10 with the same arguments gives other bits")
"""
STREAM = """
inputs = fresh(*given)
tensors = [one for one in (inputs[0], inputs[1], inputs[3], *inputs[2].values()) if torch.is_tensor(one)]
late = [memory(one) for one in tensors]
values = [raw.clone() for raw in late]
for raw in late:
    raw.zero_()  # of an index too, where zero is a class
side = torch.cuda.Stream(torch.device(device))
side.wait_stream(torch.cuda.current_stream(torch.device(device)))
with torch.cuda.stream(side):
    torch.cuda._sleep(2**23)  # some milliseconds, in which the host starts all that the call does
    for raw, value in zip(late, values):
        raw.copy_(value)
    result = evaluate(*inputs)
poison(*inputs)
side.synchronize()
"""
UNRECORDED = """
results = {}
for way, mode, wanted in (
    ("under no_grad", torch.no_grad(), True),
    ("under inference_mode", torch.inference_mode(), False),
    ("without requires_grad", torch.enable_grad(), False),
):
    with mode:
        x, y, its_options, _ = fresh(*given)
        x, y = x.detach().requires_grad_(wanted), y.detach().requires_grad_(wanted and y.is_floating_point())
        loss = subject(x, y, **its_options)
    shaped(loss, *given)
    if loss.requires_grad:
        verdict(True, f"{way}: the loss wants a gradient")
    untouched(way, x, y, its_options, wanted, wanted and y.is_floating_point())
    results[way] = {"loss": loss}
"""
NON_LEAF = """
made = []
result = evaluate(*fresh(*given), cloned)
shaped(result["loss"], *given)
if not memory(made[0][0]).equal(memory(made[0][1])):
    verdict(True, "it wrote into input, which an operation has made")
"""
ALONE = """
results = {}
for way, of in (("of the logits alone", "gradient"), ("of the target alone", "target_gradient")):
    x, y, its_options, g = fresh(*given)
    wanted, other = (x, y) if of == "gradient" else (y, x)
    wanted.requires_grad_()
    loss = subject(x, y, **its_options)
    shaped(loss, *given)
    if not loss.requires_grad:
        verdict(True, f"the loss is cut off: there is no gradient {way}")
    loss.backward(g.to(loss.dtype))
    if wanted.grad is None or other.grad is not None:
        verdict(True, f"where the gradient {way} is wanted, they are {wanted.grad} and {other.grad}")
    results[way] = {"loss": loss.detach(), of: wanted.grad}
"""
THREADS = """
tries = []
for _ in range(50):  # which of the two comes first is left to chance
    results = [*at_once(given), *at_once(given, other)]
    for result in results:
        shaped(result["loss"], *given)
    tries.append(dict(zip(ways, results)))
"""
OF_A_TRY = """
verdict(*max(judged(results[which][part][index].item(), exact) for results in tries))
"""
OF_A_WAY = """
verdict(*judged(results[which][part][index].item(), exact))
"""
SECOND_ORDER = """
x, g = logits.detach().requires_grad_(), upstream.detach().requires_grad_()
loss = subject(x, target, **options)
(gradient,) = torch.autograd.grad(loss, x, g.to(loss.dtype), create_graph=True)
result = {"second": None, "upstream_gradient": None}
if gradient.requires_grad:
    result = dict(zip(result, torch.autograd.grad(gradient, (x, g), direction, allow_unused=True)))
"""
TANGENT = """
repeats = any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride()))
with torch.autograd.forward_ad.dual_level():
    dual = torch.autograd.forward_ad.make_dual(logits.contiguous() if repeats else logits, direction)
    tangent = torch.autograd.forward_ad.unpack_dual(subject(dual, target, **options)).tangent
result = {"tangent": None if tangent is None else tangent.detach()}
"""
DERIVATIVE = """
verdict(*judged(0.0 if result[part] is None else result[part][index].item(), exact))
"""
CUT_OFF = """
got = result[part]
if got is None or got.shape != shape:
    verdict(True, f"{part} is {got if got is None else tuple(got.shape)}; expected {tuple(shape)}")
"""

# Transforms.
VJP = """
loss, back = pull(logits, target)
shaped(loss, *given)
result = dict(zip(("loss", "gradient", "target_gradient"), (loss.detach(), *back(upstream.to(loss.dtype)))))
"""
VMAP = """
axis = 0 if logits.dim() == 2 else -1
each = options["reduction"] == "none"
losses = torch.func.vmap(loss_of, axis, axis)(logits, target)
shaped(losses, logits, target, options, upstream if each else upstream.expand(logits.shape[axis]))
mapped = torch.func.vmap(gradients_of, (axis, axis, axis if each else None), axis)(logits, target, upstream)
results = [{"loss": losses}, dict(zip(("loss", "gradient", "target_gradient"), mapped))]
"""
OF_SAMPLES = """
verdict(*max(judged(result[part].detach()[index].item(), exact) for result in results if part in result))
"""
AUTOCAST = """
result = evaluate(*given, under_autocast)
wide = [one.float() if one.dtype in (torch.float16, torch.bfloat16) else one for one in (logits, target)]
shaped(result["loss"], *wide, options, upstream)
"""
META = """
meta = empty(logits), empty(target), {name: empty(value) for name, value in options.items()}, empty(upstream)
shaped(evaluate(*meta)["loss"], *meta)
"""
EXPORT = """
try:
    from torch.export import export

    export(Module(torch.add, (), {}), (torch.ones(2), torch.ones(2)))
except Exception as error:
    unasked(f"{type(error).__name__}: {error}")
tensors = {name: value for name, value in options.items() if torch.is_tensor(value)}
others = {name: value for name, value in options.items() if name not in tensors}
arguments = logits, target, *tensors.values()
loss = export(Module(subject, tuple(tensors), others), arguments).module()(*arguments)
shaped(loss, *given)
result = {"loss": loss.detach()}
"""
COMPILED = """
try:
    torch.compile(torch.sin, backend=backend)(torch.ones(2, device=device))
except Exception as error:
    unasked(f"{type(error).__name__}: {error}")
compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)
"""
CALLED_TWICE = """
results = []
for inputs in (given, other):
    inputs = fresh(*inputs)
    poison(*inputs)
    results.append(evaluate(*inputs, compiled))
    shaped(results[-1]["loss"], *inputs)
"""
OF_EITHER_CALL = """
verdict(*judged(results[which][part][index].item(), exact))
"""
NO_CLASSES = """
try:
    evaluate(*fresh(*given), compiled)
except Exception as error:
    unasked(f"a right call fails: {error!r}")
for index in classes:
    inputs = fresh(*given)
    inputs[1][(-1,) * target.dim()] = index
    try:
        loss = evaluate(*inputs, compiled)["loss"]
    except (IndexError, RuntimeError) as error:
        print(f"class {index}: refused, as it should: {type(error).__name__}")
    except (Exception, SystemExit) as error:
        verdict(True, f"class {index} raised {error!r}; allowed is IndexError or RuntimeError")
    else:
        verdict(True, f"class {index} is none, and gave {loss}; should have raised IndexError or RuntimeError")
"""
TILED = """
print(f"about {gib:.1f} GiB of memory are needed")
every = upstream
if upstream.dim():
    sizes = times * len(upstream), *upstream.shape[1:]
    every = repeated(upstream) if each_row else upstream.flatten()[0].expand(sizes)
try:
    whole = repeated(logits), repeated(target), options, every
    result = evaluate(*whole)
except (RuntimeError, MemoryError) as error:
    no_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)
    if no_memory:
        unasked(f"{type(error).__name__}: {error}")
    raise
shaped(result["loss"], *whole)
"""

# Calls that must be refused.
ISOLATED = """
if sys.argv[1:] != ["here"]:  # in a process of its own, which the call may end
    if "__file__" not in globals():
        print("save this script as a file: it starts itself again")
        raise SystemExit(2)
    child = subprocess.Popen([sys.executable, __file__, "here"], stdout=subprocess.PIPE, bufsize=0)
    child.stdout.readline()  # it has started
    try:
        told = child.communicate(timeout=seconds)[0].decode()
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        verdict(True, f"no answer within {seconds:g} s")
    print(told, end="")
    last = told.splitlines()[-1:]
    if last not in (["right"], ["wrong"]):
        verdict(True, f"its process died: exit code {child.returncode}")
    raise SystemExit(last == ["wrong"])
"""
STARTED = 'print("started", flush=True)'
REFUSED = """
names = ", ".join(error.__name__ for error in raises)
try:
    loss = subject(logits, target, **options)
    if logits.is_cuda:
        torch.cuda.synchronize()  # an assert is raised where the host waits for the device
except raises as error:
    verdict(False, f"refused, as it should: {error!r}")
except (Exception, SystemExit) as error:
    verdict(True, f"raised {error!r}; allowed is {names}")
verdict(True, f"accepted, and gave {loss}; should have raised {names}")
"""
TRIED = """
try:
    subject(logits, target, **options)
except (Exception, SystemExit) as error:
    print(f"raised {error!r}")
"""
