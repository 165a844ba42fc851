"""Products with quantized weights: the definition, the CPU, the GPU, the stopwatch."""
