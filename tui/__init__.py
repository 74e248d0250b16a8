"""The screen: a viewer and a remote control of runs; it owns none and never imports torch."""
