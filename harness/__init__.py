"""Around a run: hardware, plan, launch, supervision, scoring, scoreboard; never torch."""
