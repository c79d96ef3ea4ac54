"""One system a paper, put together from the networks."""
