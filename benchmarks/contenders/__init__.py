"""Each a way to do the work of the recipe, as somebody who knows the library would write it."""
