"""Several ways to compute the same integers: which of them runs is a matter of speed alone.

    plain       the operator's own kernel, on integers or in a float carrier that holds them
    float32     float kernels, below a bound of 2^24 that the weights prove; any processor
    int8        torch._int_mm and oneDNN's convolutions, where a canary finds them exact

A kernel is made once, for numbers that stand still; `auto` takes the quickest that is exact.
"""
