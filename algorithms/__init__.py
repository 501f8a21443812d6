"""One file per algorithm; importing one has no side effect."""
