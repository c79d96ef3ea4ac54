"""Beyond one pipeline on one machine: a list of recipes on a bare GPU machine (`runner`), on a cluster (`cluster`), and sets that fit nowhere (`sets`).

Plain Python, not exported from notebooks: there is no story here, only mechanism; `nbs/scale.ipynb` tells when to use which.
What is computed is computed by the same functions as in the pipeline, and lies in the same places.
"""
