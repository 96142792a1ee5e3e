"""What a recipe is made of, for people: lists, descriptions, summaries, pictures of anchors."""
