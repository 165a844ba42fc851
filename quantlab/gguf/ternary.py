"""One and two bits: TQ1_0, TQ2_0, Q1_0 and Q2_0."""
