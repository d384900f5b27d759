"""Point-in-time features and labels, as SQL over an open engagement log."""
