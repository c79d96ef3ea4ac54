"""One system per paper, built from the networks, and sequences of separately trained ones."""
