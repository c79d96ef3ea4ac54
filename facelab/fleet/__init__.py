"""Training, restoring and scoring outside of the pipeline: one machine with a time limit, several GPUs, many machines.

Plain Python, not exported from notebooks: there is no story here, only mechanism. `nbs/scale.ipynb` says when to use
which.
"""
