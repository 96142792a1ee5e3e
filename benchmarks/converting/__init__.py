"""Each a data set to convert, and how others convert it."""
