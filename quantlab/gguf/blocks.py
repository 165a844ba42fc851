"""The blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""
