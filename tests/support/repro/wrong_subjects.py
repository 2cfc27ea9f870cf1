"""Subjects with one mistake each, as the code that a user puts into a repro script."""

import textwrap


def source(body):
    """Return the code of a subject with this function body."""
    return "import torch, crossent\ndef subject(input, target, **options):\n" + textwrap.indent(body, "    ")


def function_of(code):
    """Return the function `subject` that the code defines."""
    names = {}
    exec(code, names)
    return names["subject"]


OFF = source("return crossent.formula(input, target, **options) * 1.01")
OFF_TARGET = source("return crossent.formula(input, 2 * target - target.detach(), **options)")
CONSTANT = source(
    "return crossent.formula(input, target, **options).detach().zero_() + 0 * input.nan_to_num(0, 0, 0).sum()"
)
REFUSES = source("raise RuntimeError('not today')")
DETACHES_TARGET = source("return crossent.formula(input, target.detach(), **options)")
RETURNS_A_LIST = source("return [crossent.formula(input, target, **options)]")
WRITES = source("input.data[...] = 0\nreturn crossent.formula(input, target, **options)")
WRITES_WEIGHT = source("loss = crossent.formula(input, target, **options)\noptions['weight'].zero_()\nreturn loss")
WRITES_BACKWARD = source(
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(lambda gradient: (input.data.zero_(), gradient)[1])\n"
    "return loss"
)
SCALES_UPSTREAM = source(
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(lambda upstream: upstream.mul_(3).clone().div_(3))\n"
    "return loss"
)
SETS_GRAD = source(
    "loss = crossent.formula(input, target, **options)\n"
    "(input.grad,) = torch.autograd.grad(loss.sum(), input, retain_graph=True)\n"
    "return loss"
)
SETS_REQUIRES_GRAD = source("options['weight'].requires_grad_()\nreturn crossent.formula(input, target, **options)")
DOUBLE = source("return crossent.formula(input, target, **options).double()")
LONGER = source("return crossent.formula(input, target, **options)[None]")
ACCEPTS = source("return input.sum()")
WRONG_CLASS = source("raise KeyError('average')")
ALIASED = source("return input.flatten()[0]")
DRAWS_RANDOM_NUMBERS = source("torch.rand(1)\nreturn crossent.formula(input, target, **options)")
WRITES_AND_REFUSES = source("input.data.fill_(1)\nraise ValueError('average')")
DRAWS_RANDOM_NUMBERS_AND_REFUSES = source("torch.rand(1)\nraise ValueError('average')")
NEGATIVE = source("return crossent.formula(input, target, **options) - 1")
LEAKS = source(
    "ignored = target == options.get('ignore_index', -100)\n"
    "leak = (input - input.detach()).sum(1) * ignored\n"
    "return crossent.formula(input, target, **options) + leak + 0.25 * ignored"
)
# WRONG_IN_ONE_LOGIT has a wrong gradient of one logit; WRONG_SECOND_DERIVATIVE has a wrong derivative of the gradient.
WRONG_IN_ONE_LOGIT = source(
    "extra = torch.zeros_like(input)\n"
    "extra[(0, 1) if input.dim() == 2 else (slice(None), 1, 0)] = 0.01\n"
    "return crossent.formula(input, target, **options) + ((input - input.detach()) * extra).sum()"
)
WRONG_SECOND_DERIVATIVE = source(
    "return crossent.formula(input, target, **options) + ((input - input.detach()) ** 2).sum()"
)


def later(change):
    """Return the code of a subject that runs `change` in each call. `subject.calls` is the number of earlier calls."""
    count = "subject.calls = getattr(subject, 'calls', -1) + 1"
    return source(f"{count}\nloss = crossent.formula(input, target, **options)\n{change}\nreturn loss")


LARGER_EACH_TIME = later("loss = loss * (1 + subject.calls / 100)")
OTHER_GRADIENT_EACH_TIME = later(
    "back = dict(calls=0)\n"
    "def hook(gradient):\n"
    "    back['calls'] += 1\n"
    "    return gradient * back['calls']\n"
    "loss.register_hook(hook)"
)
WRITES_INTO_EARLIER_RESULTS = later(
    "if not subject.calls:\n    subject.memory = torch.empty_like(loss.data)\n"
    "loss.data = subject.memory.copy_(loss.data)"
)
CACHES_BY_ADDRESS = later(
    "known = vars(subject).setdefault('known', {})\n"
    "copy = known.setdefault(target.data_ptr(), target.detach().clone())\n"
    "if not target.requires_grad and copy.shape == target.shape:\n"
    "    loss = crossent.formula(input, copy, **options)"
)
CACHES_BY_OBJECT = source(
    "weight = options.pop('weight', None)\n"
    "if weight is not None and not hasattr(weight, 'kept'):\n"
    "    weight.kept = weight.clone()\n"
    "return crossent.formula(input, target, getattr(weight, 'kept', None), **options)"
)
OVERWRITES_UNDER_NO_GRAD = later(
    "if not loss.requires_grad:\n"
    "    memory = vars(subject).setdefault('memory', {})\n"
    "    loss = memory.setdefault(loss.shape, torch.empty_like(loss)).copy_(loss)"
)
REFUSES_LATER = later("if subject.calls:\n    raise ValueError('only once')")
OTHER_SHAPE_LATER = later("loss = loss[None] if subject.calls else loss")


def where(condition, change="loss = loss * 1.01"):
    """Return the code of a subject that makes a change if a condition is true, and is right otherwise."""
    change = textwrap.indent(change, "    ")
    return source(f"loss = crossent.formula(input, target, **options)\nif {condition}:\n{change}\nreturn loss")


def backward_where(condition, change="gradient = gradient * 1.01"):
    """Return the code of a subject whose backward pass makes a change if a condition on the `gradient` is true."""
    change = textwrap.indent(change, "        ")
    hook = f"def hook(gradient):\n    if {condition}:\n{change}\n    return gradient\n"
    return source(
        f"loss = crossent.formula(input, target, **options)\n{hook}"
        "if loss.requires_grad:\n    loss.register_hook(hook)\nreturn loss"
    )


REFUSE = "raise ValueError('not so')"
CHANGE_SHAPE = "loss = loss[None]"
STRIDED = "not input.is_contiguous()"
IS_DUAL = "torch.autograd.forward_ad.unpack_dual(input).tangent is not None"
UNDER_GRAD = "torch._C._functorch.is_gradtrackingtensor(input)"
UNDER_VMAP = "torch._C._functorch.is_batchedtensor(input)"
UNDER_VMAP_BACKWARD = "torch._C._functorch.is_batchedtensor(gradient)"
BATCHED = "'Batched' in str(torch._C._dispatch_keys(gradient))"
UNDER_AUTOCAST = "(torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16"
UNDER_DETERMINISM = "torch.are_deterministic_algorithms_enabled()"
IN_A_THREAD = "__import__('threading').current_thread() is not __import__('threading').main_thread()"
IS_TRACED = "torch.compiler.is_compiling()"
WITH_WEIGHTS_OF_ONE = "options.get('weight') is not None and options['weight'].eq(1).all()"
LARGER = "len(input) > 7"
# An extension that does not support transforms: no mode of torch can differentiate its backward pass.
WITHOUT_TRANSFORMS = """
import torch, crossent

class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        ctx.pair = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = ctx.pair
        return torch.autograd.grad(loss, leaf, upstream.detach(), retain_graph=True)[0], None, None

def subject(input, target, **options):
    return Old.apply(input, target, options)
"""
# A subject that saves the tensors of all calls in one dict, so that a call overwrites the tensors of earlier calls.
SHARES_SAVED_TENSORS = """
import torch, crossent

saved = {}

class Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        saved["pair"] = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = saved["pair"]
        return torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0], None, None

def subject(input, target, **options):
    return Shares.apply(input, target, options)
"""
# A subject whose backward pass looks at the tensor that the caller got, and may have changed.
LOOKS_AT_ITS_LOSS = """
import torch, crossent

class Looks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        ctx.loss = loss.clone()
        return ctx.loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        return torch.where(ctx.loss < 0, 0, upstream)

def subject(input, target, **options):
    return Looks.apply(crossent.formula(input, target, **options))
"""
REFUSES_SECOND_BACKWARD = source(
    "def hook(gradient):\n"
    "    if gradient.requires_grad:\n"
    "        raise ValueError('only once')\n"
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(hook)\n"
    "return loss"
)
TORCH_LOSS = source("return torch.nn.functional.cross_entropy(input, target, **options)")
IN_CHUNKS = source(  # Automodel#3803
    "pairs = zip(input.split(2), target.split(2))\n"
    "return torch.stack([crossent.formula(x, y, **options) for x, y in pairs]).mean()"
)
DEPENDS_ON_BATCH_SIZE = source("return crossent.formula(input, target, **options) * (1 + len(input) / 1000)")
CANCELS = source(  # pytorch#38839
    "losses = torch.logsumexp(input, 1) - input.gather(1, target[:, None])[:, 0]\n"
    "return dict(none=losses, sum=losses.sum(), mean=losses.mean())[options['reduction']]"
)
UNWEIGHTED = source("return crossent.formula(input, target, **{**options, 'weight': None})")
CLAMPS = source("return crossent.formula(input, target.clamp(0, 4), **options)")
LAST_ROWS = source(
    "loss = crossent.formula(input, target, **options)\n"
    "return loss * torch.where(torch.arange(len(loss)) > 7, 1.01, 1.0).reshape(-1, *[1] * (loss.dim() - 1))"
)
LAST_GRADIENTS = source(
    "extra = (torch.arange(len(input)) == 10)[:, None] * 0.01\n"
    "return crossent.formula(input, target, **options) + ((input - input.detach()) * extra).sum(1)"
)
