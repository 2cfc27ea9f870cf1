"""The code that only trials of a linear cross-entropy need.

mistakes  the mistake that explains a wrong result, found by computing the result of each known mistake
"""
