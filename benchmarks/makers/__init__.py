"""What trained the weights that lie in common/recipes."""
