"""A soak: any number of random cases, of whose results a report keeps the sums, the worst cases and some findings.

The memory of a soak and the size of its report do not grow with the number of cases.

draws      the cases, each drawn from its number and the seed
sums       what a report keeps of the results of a subject
report     SoakReport: one soak, as text and as a JSON document
document   read a report from its file, and require that its numbers are possible
merge      the report of a soak from the reports of its shards; reports of `check` or of soaks
runner     soak(): draw cases, judge them as `crossent check` does, and add up the results
"""
