"""Functions shared by all commands. Experiments call them, never the reverse.

startup        streams and Ctrl-C before the imports
command_line   flags from a dataclass, errors in one line, exit codes
flags          flags of data and runs, rules for values
run_folder     lock, configuration, JSON files
training       open a run; restore, epochs, pieces, check, log, save
checkpoints    the newest good one, the last two, the best
selection      which epoch is the best, on validation data
metrics        metrics.jsonl, TensorBoard
signals        collected until there is a good moment to stop
processes      several under one experiment: meet, agree, who writes
lost_process   the end of a process that has lost another
memory         what a run needs, and what there is
devices        data and steps on one device or many
report         checks, tables, pictures
"""
