"""The exercises of the course, one module per notebook: the right rule and the likely wrong ones."""
