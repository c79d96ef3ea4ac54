"""The plumbing of the pipeline: fingerprints of code, the schedule of stages, notebooks run by papermill, the site.

Plain Python, not exported from notebooks: there is no story here, only mechanism. No torch is imported,
so that `python -m facelab.pipeline sources` costs a fraction of a second.
"""
