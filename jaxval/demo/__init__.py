"""The demo: a real retrieval task, and a trainer as our users have them. No download.

`python -m jaxval.demo` builds the task, then runs the trainer and jaxval side by side.
`task`, `model` and `trainer` know nothing of jaxval; `plugin` is all that joins them. Asked by
--jaxval_output_dir, the trainer listens to `jaxval.signals`.
"""
