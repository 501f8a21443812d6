"""Update by update against the authors' code: one module per file of ours, found by its name, and what they share."""
