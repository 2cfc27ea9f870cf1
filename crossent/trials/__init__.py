"""Run one subject on one case, and compare the results with the exact values.

A subject is a loss function under test. A case is an input with its options. A trial is one subject on one case.

call        one call of a subject: its loss, its gradients, and its effects on the arguments
act         acts and hosts: an act is a function that calls a subject; a host runs acts in the subject's process
check       Check: one property of a subject on a case, the cost of the check, and the features that it needs
memory      writes into arguments, changes of their attributes, memory that results share, freed memory full of NaN
exact       the exact values of a case, and its arguments as rows, from which `numerics.bounds` computes error bounds
difference  Difference: the worst error of a result, compared with its error bound
factors     lines about a wrong number: the factor to the exact value, a narrower dtype, or an infinity
linear/     the mistakes that explain a wrong linear cross-entropy
along       derivatives along a direction of the logits, and their comparison with the exact values
trial       Question: a case on a device with its exact values. Trial: one subject on one case
ahead       the error bounds of many cases, computed together before the calls
agreement   the comparison of two results of one subject that should be equal up to rounding

A check may call the subject several times. In messages, a phrase such as "under no_grad" names a call. In the
code, the variable `way` has this phrase.
"""
