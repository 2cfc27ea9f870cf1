"""The subjects: the loss functions under test.

The forms (the reference implementations in `crossent.forms`) and torch are the built-in subjects. The other subjects
are functions of the user, and `loss_parallel`, torch's loss on several ranks.

A promise says how precisely a loss computes, for example in which dtype. The error bounds follow from the promise. A
contract is a promise under a name that a user can choose. A grade says how often a loss may round to float16 or
bfloat16: once ("A"), or in each step ("B").

A description is a text from which a subject can be loaded, such as "formula" or "path/to/file.py:NAME".

subject      Subject: one loss function under test, with its promise and the features that it lacks
contracts    the contracts that a user can choose, by name
builtin      the forms and torch, by name
features     the features that a subject may lack, such as class weights
callables    a subject from a callable, or from a class with the options of nn.CrossEntropyLoss
loader       a subject from its name, from package.module:NAME or from path/to/file.py:NAME
remote       a function of the user whose code the main process never imports
confinement  limits on a process that runs the user's code, so that this code cannot reach other processes
ranks/       losses on several ranks: processes of one torch.distributed group, each with a shard of the logits
compiler     torch.compile: SUBJECT+compile, or the reason why torch cannot compile here
"""
