"""dsclib: the small library under the interactive textbook on deep sparse coding.

Torch tensors in, torch tensors out. Signals are rows of a batch ``Y`` (B, m), codes are rows of
``X`` (B, n), atoms are the columns of ``D`` (m, n), so that ``Y = X @ D.T``.
"""

__version__ = "0.1.0"
