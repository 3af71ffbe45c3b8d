"""Look at a network: its graph, what each pass did to it, and where it errs."""
