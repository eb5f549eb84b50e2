"""The autotuner: measure schedules, log them, let compilation use what was found.

In: a model and a target. Out: log records (see `records`), which `library` turns into schedules.
Invariant: `library` and what it imports never import the pipeline, which imports it; `tuner` sits on top.
"""
