"""Functions shared by all commands. Experiments call them, never the reverse.

startup        streams and Ctrl-C before the imports
command_line   flags from a dataclass, one-line errors, exit codes
flags          flags for data and runs, rules for values
run_folder     lock, configuration, JSON files
training       open a run; restore, epochs, pieces, check, log, save
checkpoints    restore the newest intact one; keep the last two and the best
selection      the best epoch on validation data
metrics        metrics.jsonl and TensorBoard events
signals        collect signals until the run can stop safely
processes      several processes in one experiment: join, agree, first one writes
lost_process   exit after losing contact with another process
memory         memory required by a run and memory available
devices        data and steps on one or several devices
report         checks, tables, figures
"""
