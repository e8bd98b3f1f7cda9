"""Writing manifests, and comparing them with an origin."""

import pytest

from jaxval.corpus import manifest
from jaxval.corpus.manifest import Origin
from jaxval.errors import UserError

INPUTS = {"corpus": "1", "queries": "2", "qrels": "3", "runs": ["4", "5"]}
MADE = Origin("run:depth=9", 0, None, INPUTS)


def write(folder):
    folder.mkdir()
    manifest.write(folder, MADE, {"passages": 1})


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (
            Origin("run:depth=8", 0, None, INPUTS),
            "strategy run:depth=9, not run:depth=8",
        ),
        (Origin("run:depth=9", 7, None, INPUTS), "seed 0, not 7"),
        (Origin("run:depth=9", 0, "other", INPUTS), "stemmer None, not other"),
        (
            Origin("run:depth=9", 0, None, INPUTS | {"corpus": "9", "runs": []}),
            "other corpus, other",
        ),
        (
            Origin("run:depth=9", 0, None, INPUTS, {"checkpoint": "7"}),
            "another checkpoint or encoder",
        ),
    ],
)
def test_a_sample_of_another_origin_is_refused(tmp_path, other, what):
    write(tmp_path / "s")
    with pytest.raises(UserError) as caught:
        manifest.holds(tmp_path / "s", other)
    message = str(caught.value)
    assert message.startswith(f"`output_dir={tmp_path / 's'}` holds another sample ({what}")
    assert message.endswith("): name a new folder, or remove this")


def test_a_path_without_a_sample_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    for path in (tmp_path, tmp_path / "notes"):
        with pytest.raises(UserError, match="exists and is not a sample: name a new folder"):
            manifest.holds(path, MADE)


@pytest.mark.parametrize("content", ["{", "[]", '{"inputs": 3}', "\udcff"])
def test_an_unreadable_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        UserError, match=r"manifest.json cannot be read \(.*\): remove the folder, or"
    ):
        manifest.holds(tmp_path, MADE)


@pytest.mark.parametrize("content", ["{", "[]", '{"inputs": 3}', "{}"])
def test_drawn_from_returns_the_digest_of_the_whole_corpus(tmp_path, content):
    write(tmp_path / "s")
    assert manifest.drawn_from(tmp_path / "s" / "corpus.jsonl") == "1"
    assert manifest.drawn_from(tmp_path / "corpus.jsonl") is None
    (tmp_path / "manifest.json").write_text(content)
    assert manifest.drawn_from(tmp_path / "corpus.jsonl") is None
