"""Measures of a frozen backbone, each with its confidence interval."""
