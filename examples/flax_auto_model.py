"""Any FlaxAutoModel of transformers 4; transformers 5 does not have them.

MODEL=FOLDER python -m jaxval.main --encoder=examples.flax_auto_model:factory ...

The checkpoints contain the model's params, anywhere in their tree. Families that
--model=FOLDER supports need neither a factory nor transformers 4.
"""

import os

from transformers import AutoConfig, FlaxAutoModel

from jaxval import FunctionEncoder


def factory():
    config = AutoConfig.from_pretrained(os.environ["MODEL"])
    model = FlaxAutoModel.from_config(config, _do_init=False)

    def encode(params, ids, mask):
        states = model(ids, mask.astype("int32"), params=params).last_hidden_state
        return states[:, 0]  # [CLS]; nnx_encoder.py shows a mean over the mask

    return FunctionEncoder(encode, encode, shapes=lambda: model.params_shape_tree)
