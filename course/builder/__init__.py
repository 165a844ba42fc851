"""Turns course sources (py:percent) into executed, committed notebooks; see ../build.py."""
