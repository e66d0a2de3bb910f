"""Drills: the rehearsed pipeline is broken on purpose, and what it does then is looked at.

They run the real `make rehearse` in a clone of this repository, at its last commit. Fixtures say what a drill needs to
have happened before, so any of them can be run alone: `pytest tests/drills -k database`.
"""
