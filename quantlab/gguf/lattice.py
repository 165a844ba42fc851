"""Below four bits: eight or four weights at once are one point of a lattice (IQ1, IQ2, IQ3)."""
