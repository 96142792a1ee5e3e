"""Commands of ``detect`` that look at recipes and parts."""
