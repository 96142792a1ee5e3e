"""What the sections of a recipe may say."""
