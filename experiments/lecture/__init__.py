"""The lecture notes as programs: one module per topic, each with a table of checks.

    python -m experiments.lecture.information

README.md in this folder describes the topics and lists every row of the notes.
"""
