"""Models of the home timeline."""
