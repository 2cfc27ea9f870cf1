"""The subjects: the cross-entropies under test.

This room owns what the package knows about a loss function under test: how to load and call it, what it promises about
its arithmetic, and which features it lacks. Its modules import torch, and of this package `crossent.forms`,
`crossent.cases`, `crossent.numerics.bounds.contracts`, `crossent.words` and `crossent.state`. They never import the
oracle.

subject      Subject: one loss function under test, with its promise and the features that it lacks
contracts    the contracts that a user can choose, by name
builtin      the forms and torch, by name
features     the features that a subject may lack
callables    a subject from a callable or a class with the options of nn.CrossEntropyLoss
loader       a subject from its name, from package.module:NAME or from path/to/file.py:NAME
remote       a subject that is loaded only in the process that calls it
confinement  what a process that runs foreign code cannot do to the process that judges it
compiler     torch.compile: SUBJECT+compile, or the reason why torch cannot compile here
"""
