"""The demo: a real retrieval task and an ordinary trainer. Nothing is downloaded.

`python -m jaxval.demo` builds the task, then runs the trainer and jaxval side by side.
`task`, `model` and `trainer` do not depend on jaxval; `plugin` connects the model to it. With
--jaxval_output_dir the trainer also reads `jaxval.signals`.
"""
