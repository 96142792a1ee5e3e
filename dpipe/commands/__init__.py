"""The commands of dpipe, one module each: thin Typer functions over the package."""
