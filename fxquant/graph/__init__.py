"""The only code that knows torch.fx: capture, places, edits, printing."""
