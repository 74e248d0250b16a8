"""The trainer: everything that needs torch; reads one plan, writes one run folder."""
