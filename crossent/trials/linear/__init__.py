"""The code that only trials of a linear cross-entropy need.

mistakes  name the mistake that explains a wrong result, by computing the result of each mistake
"""
