"""Dense heads: predictions at every position of every level."""
