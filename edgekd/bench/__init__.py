"""Measure: a child process per measurement, rounds of them, statistics, and rows that can be INVALID."""
