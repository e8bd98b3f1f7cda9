"""Runs asyncval with an encoder, which asyncval's README asks its users to write.

Takes asyncval's flags and calls its `main`. `--report_to=jsonl` is an additional tracker that
writes a line for each checkpoint to OUTPUT_DIR/metrics.jsonl.
"""

import json
from pathlib import Path

import torch
from asyncval import callbacks, modeling
from transformers import AutoModel


class MeanPooled(modeling.Encoder):
    """Returns the normalized mean of the last hidden states, as sentence-transformers does."""

    def __init__(self, ckpt_path, async_args):
        super().__init__(ckpt_path, async_args)
        self.model = AutoModel.from_pretrained(ckpt_path, torch_dtype=torch.float32)

    def encode_passage(self, psg):
        """Returns vectors, [batch, dim]."""
        hidden = self.model(**psg).last_hidden_state
        mask = psg["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    encode_query = encode_passage


class JsonLines:
    """Appends the measures of each checkpoint to a file."""

    def log(self, args, logs, step):
        """Appends the measures of one checkpoint."""
        with (Path(args.output_dir) / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "measures": logs}) + "\n")


if __name__ == "__main__":
    modeling.DenseModel = MeanPooled
    callbacks.INTEGRATION_TO_CALLBACK["jsonl"] = JsonLines
    from asyncval.__main__ import main  # imports DenseModel, so after it is replaced

    main()
