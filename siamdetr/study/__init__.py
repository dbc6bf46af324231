"""Studies: does pretraining help on these images? The paper's protocols as grids of runs, resumable, with intervals and a report."""
