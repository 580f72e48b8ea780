"""The report: the results of all stages on one page that needs no other file."""
