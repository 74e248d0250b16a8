"""Drawing: numbers in, rows of text out; nothing here knows what a run is."""
