"""Pictures, tables and checks of a data set."""
