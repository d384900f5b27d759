"""The projects: what is trained, each on the parts below and never on one another."""
