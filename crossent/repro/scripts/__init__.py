"""The functions of the scripts that `crossent repro` prints, as Python files that ruff, mypy and the tests read.

`composer.py` copies functions into a script. A function may use torch, the standard library, functions of this folder
and the values of `case`.

A step is a function without parameters that calls the subject, the loss function under test. A step may return results
for a function `judge_…`. A result is a dict with the parts "loss", "gradient", … To end the script, a function raises
SystemExit with the exit status: 1 if the subject is wrong, 0 if the subject is right, and 2 if the script cannot tell.

    case           example values of a case and of a finding
    functions      call the subject, judge one number, end the script
    subjects       the subjects that a script defines itself
    single         checks of one call, of a repeated call, and of a call on repeated logits
    relations      calls whose results follow from each other
    circumstances  calls without gradients, with only some gradients, on non-leaf logits, in threads, in modes of torch
    determinism    identical bits in each call; a call on a CUDA stream
    derivatives    double backward and forward mode
    transforms     batches of derivatives, torch.func, autocast, the meta device, torch.export
    compiled_code  torch.compile
    refusals       calls with bad input; the separate process for a call that may crash or not return
"""
