"""Reads annotation files into an index, and keeps what was read as arrays that are mapped into memory."""
