"""One method, one file; siblings never import one another.

A method is a function on matrices in lower case (``rtn``, ``gptq``) and a frozen dataclass of its
hyperparameters in capitals (``RTN``, ``GPTQ``) whose ``quantize_block(block, scheme)`` asks the
block for the statistics that it needs. A new method is one new file; nothing registers it.
"""
