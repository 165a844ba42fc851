"""Four-bit floats under a shared scale: MXFP4 and NVFP4."""
