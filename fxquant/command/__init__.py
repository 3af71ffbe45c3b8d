"""What the command line is made of: models, data, scores, and the steps of `fxquant quantize`."""
