"""How fast updates are, and how fast they could be."""
