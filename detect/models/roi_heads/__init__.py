"""RoI heads: predictions from the features of each region of interest."""
