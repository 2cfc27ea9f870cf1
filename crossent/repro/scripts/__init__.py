"""The functions of printed scripts, as Python files that ruff, mypy and the tests read.

`composer.py` copies the functions that a script needs into the script. A function may use torch, the standard library,
functions of this folder and the values of `case`. A printed script needs nothing else.

    case           example values of a case and of a finding
    functions      one call, one number, and how a script ends
    subjects       the subjects that a script defines itself
    single         checks of one call
    relations      checks of several calls, whose results follow from each other
    circumstances  without gradients, on non-leaves, in threads
    determinism    the same bits each time; on a CUDA stream
    derivatives    double backward and forward mode
    transforms     batches of derivatives, torch.func, autocast, the meta device, torch.export
    compiled_code  torch.compile
    refusals       bad calls, and the separate process for them

A step is a function without parameters that `repro/recipes.py` names. If a step returns a result, a function
`judge_…` may compare one number of the result.
"""
