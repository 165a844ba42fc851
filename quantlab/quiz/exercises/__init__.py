"""Exercises of the course, one file per module: a list ``EXERCISES``, and what its checks need."""
