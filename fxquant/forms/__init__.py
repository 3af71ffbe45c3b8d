"""What an operator's form in a file computes with: values whose arithmetic is written down."""
