"""Image files and pixels on the CPU: decode, encode, resample, change colours."""
