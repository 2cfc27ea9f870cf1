"""What is known of a trial of a linear cross-entropy alone.

mistakes  the mistakes that explain a wrong result, by computing the result of each mistake
"""
