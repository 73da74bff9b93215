"""Decisions: from what is wanted and what was observed to the steps that lead there. No effects, no I/O.

What cannot or must not be done is raised here, before anything has changed.
"""
