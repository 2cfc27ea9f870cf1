"""A soak: a run on any number of random cases.

The memory of a soak and the size of its report do not grow with the number of cases.

draws      the random cases, each of which follows from its number, its dtype and the seed
sums       the sums, the worst cases and the findings that a report keeps of each subject
report     SoakReport: one soak, as text and as a JSON document
document   read a report from its file, and refuse a report with impossible numbers
merge      merge the reports of shards, of `crossent check` or of `crossent soak`
runner     soak(): draw cases, judge them as `crossent check` does, and add up the results
"""
