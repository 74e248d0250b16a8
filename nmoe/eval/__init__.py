"""The CORE score of a model: tasks, prompts, scoring; the entry is `nmoe.eval.core.evaluate`."""
