"""Tables, charts, figures, claims: what a run shows of itself."""
