"""The verbs of the `n` command, one module a noun; each imports what it needs when it is called."""
