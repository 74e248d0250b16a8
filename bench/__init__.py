"""What the kernels, the expert layer and the transport cost, beside their peers; see NOTES.md."""
