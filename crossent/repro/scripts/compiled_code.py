"""Script functions for the checks of torch.compile."""

# mypy: allow-untyped-defs, allow-untyped-calls

import torch

from crossent.repro.scripts.case import backend, classes, device, dynamic, given, other, subject, target
from crossent.repro.scripts.functions import cannot_run, evaluate, fresh, poison, require_shape, verdict


def compiled(loss, backend="inductor", dynamic=None):
    """Return a loss function compiled as one graph. End the script with status 2 if torch cannot compile."""
    try:
        torch.compile(torch.sin, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        cannot_run(f"{type(error).__name__}: {error}")

    def call(*arguments, **options):  # a wrapper, since torch.compile skips functions of torch itself
        return loss(*arguments, **options)

    return torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)


def call_compiled():
    """Return the results of two calls of the compiled subject, with different sizes if `dynamic` is true."""
    loss_of = compiled(subject, backend, dynamic)
    results = []
    for arguments in (given, other):
        inputs = fresh(*arguments)
        poison(*inputs)
        results.append(evaluate(*inputs, loss_of=loss_of))
        require_shape(results[-1]["loss"], *inputs)
    return results


def check_compiled_errors():
    """Check that the compiled subject raises IndexError or RuntimeError for each wrong class index in `classes`."""
    loss_of = compiled(subject, backend, dynamic)
    evaluate(*fresh(*given), loss_of=loss_of)
    for index in classes:
        inputs = fresh(*given)
        inputs[1][(-1,) * target.dim()] = index
        try:
            loss = evaluate(*inputs, loss_of=loss_of)["loss"]
        except (IndexError, RuntimeError) as error:
            print(f"the call with class {index} raised {type(error).__name__}, which is right")
        except (Exception, SystemExit) as error:
            verdict(True, f"the call with class {index} raised {error!r}; expected IndexError or RuntimeError")
        else:
            out = f"the call with class {index}, which is out of range, returned {loss}"
            verdict(True, f"{out}; expected IndexError or RuntimeError")
