"""What turns sample plans into pixels: OpenCV on the CPU, DALI on the CPU or the GPU."""
