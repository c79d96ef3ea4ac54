"""The plumbing of the pipeline: project folder, parameters, fingerprints of code, notebooks run by papermill.

Plain Python, not exported from notebooks: there is no story here, only mechanism. No torch is imported,
so that `python -m facelab.pipeline sources` costs a fraction of a second.
"""
