"""Any FlaxAutoModel of transformers 4, which transformers 5 no longer has.

MODEL=FOLDER python -m jaxval.main --encoder=examples.flax_auto_model:factory ...

The checkpoints hold the model's params wherever in their tree. For families that
--model=FOLDER knows, that is shorter and needs no transformers 4.
"""

import os

from transformers import AutoConfig, FlaxAutoModel

from jaxval.encoders.adapter import FunctionEncoder


def factory():
    config = AutoConfig.from_pretrained(os.environ["MODEL"])
    model = FlaxAutoModel.from_config(config, _do_init=False)

    def encode(params, ids, mask):
        states = model(ids, mask.astype("int32"), params=params).last_hidden_state
        return states[:, 0]  # of [CLS]; for a mean over the mask, do as in nnx_encoder.py

    return FunctionEncoder(encode, encode, shapes=lambda: model.params_shape_tree)
