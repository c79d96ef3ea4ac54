"""`python -m benchmarks [NAME ...]`: every degradation beside the usual way of doing it, in one run."""

import sys

from benchmarks.common import all_cases, main

main(all_cases(sys.argv[1:]))
