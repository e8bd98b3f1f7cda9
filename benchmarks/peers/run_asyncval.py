"""Asyncval as its user starts it, with the encoder that its README asks the user for.

Takes asyncval's own flags and runs asyncval's own main. `--report_to=jsonl` is added to the
trackers that it knows: a line a checkpoint, in OUTPUT_DIR/metrics.jsonl.
"""

import json
from pathlib import Path

import torch
from asyncval import callbacks, modeling
from transformers import AutoModel


class MeanPooled(modeling.Encoder):
    """The mean of the last hidden states, at unit length; what sentence-transformers does."""

    def __init__(self, ckpt_path, async_args):
        super().__init__(ckpt_path, async_args)
        self.model = AutoModel.from_pretrained(ckpt_path, torch_dtype=torch.float32)

    def encode_passage(self, psg):
        hidden = self.model(**psg).last_hidden_state
        mask = psg["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    encode_query = encode_passage


class JsonLines:
    """Appends the measures of each checkpoint to a file."""

    def log(self, args, logs, step):
        with (Path(args.output_dir) / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "measures": logs}) + "\n")


if __name__ == "__main__":
    modeling.DenseModel = MeanPooled
    callbacks.INTEGRATION_TO_CALLBACK["jsonl"] = JsonLines
    from asyncval.__main__ import main  # takes DenseModel by name, so only now

    main()
