"""The specification of every kernel as a function of plain torch; runs on any device."""
