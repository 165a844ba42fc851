"""Four bits through a fixed table of uneven levels: IQ4_NL and IQ4_XS."""
