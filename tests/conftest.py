"""How long the tests search that let Hypothesis draw their cases: `--hypothesis-profile` chooses.

Not in the conftest.py above, which the benchmarks share: they need no Hypothesis.
"""

from hypothesis import settings

# The same few cases in every run, so that a change that broke nothing fails nothing; seconds.
settings.register_profile("ci", derandomize=True, max_examples=200, database=None, deadline=None, print_blob=False)
# Others in every run; minutes. What fails is printed in a form that repeats it.
settings.register_profile("thorough", max_examples=20_000, database=None, deadline=None, print_blob=True)
settings.load_profile("ci")
