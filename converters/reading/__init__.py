"""Folders, archives and images of a data set, read with errors that name the file."""
