"""Super-blocks of 256 weights whose sub-blocks have small integer scales: Q2_K to Q6_K, Q8_K."""
