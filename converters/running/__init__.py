"""Work on many files: processes, progress, signals, and a journal to go on from."""
