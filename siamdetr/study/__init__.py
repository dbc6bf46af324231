"""Studies of pretraining: the paper's protocols as resumable grids of runs, with intervals and a report."""
