"""The lecture notes, executable: a file for each topic, a table that checks itself.

    python -m experiments.lecture.information

README.md in this folder walks through the notes in their order.
"""
