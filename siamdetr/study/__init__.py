"""Studies of pretraining: the papers' protocols as resumable grids of runs, with intervals."""
