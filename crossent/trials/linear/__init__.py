"""The code that only trials of a linear cross-entropy need.

mistakes  the mistake that explains a wrong result, such as a missing bias
"""
