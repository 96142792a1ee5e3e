"""From the mappings of a recipe to checked and built parts."""
