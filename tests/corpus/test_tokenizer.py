import importlib.util
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from jaxval.corpus.tokenizer import load, wrap
from jaxval.errors import DataError, EncoderError

TEXTS = st.one_of(
    st.text(st.sampled_from("ab z?")), st.lists(st.integers(0, 29), max_size=9).map(tuple)
)


def backend(single=None):
    """Returns a backend with the words a and b (ids 0, 1) and specials < and > (2, 3)."""
    made = Backend(models.WordLevel({"a": 0, "b": 1, "<": 2, ">": 3}, unk_token="b"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single:
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<", 2), (">", 3)]
        )
    return made


def test_special_tokens_are_added_to_strings_and_to_ids(tiny_tokenizer):
    encoded = tiny_tokenizer.encode(["a b", (4, 5), "", (), "ü"], 16)
    assert encoded == [[2, 4, 5, 3], [2, 4, 5, 3], [2, 3], [2, 3], [2, 1, 3]]


def test_truncated_texts_keep_their_special_tokens(tiny_tokenizer):
    assert tiny_tokenizer.encode(["a b c d", (4, 5, 6, 7)], 4) == [[2, 4, 5, 3]] * 2
    # The last limit has no effect.
    assert tiny_tokenizer.encode(["a b c d"], 6) == [[2, 4, 5, 6, 7, 3]]


@given(st.lists(TEXTS, max_size=8), st.integers(3, 12))
def test_texts_and_ids_keep_their_order(tiny_tokenizer, texts, max_len):
    one_by_one = [tiny_tokenizer.encode([text], max_len)[0] for text in texts]
    assert tiny_tokenizer.encode(texts, max_len) == one_by_one
    assert all(2 <= len(ids) <= max_len for ids in one_by_one)


@pytest.mark.parametrize(
    ("single", "opening", "closing"),
    [
        (None, (), ()),
        ("$A >", (), (3,)),
        ("< $A", (2,), ()),
        ("< < $A > > >", (2, 2), (3, 3, 3)),
    ],
)
def test_special_tokens_are_taken_from_the_tokenizer(single, opening, closing):
    made = wrap(backend(single))
    assert (made.opening, made.closing) == (opening, closing)
    assert made.encode([(1, 0), "b a"], 9) == [[*opening, 1, 0, *closing]] * 2


def test_ids_outside_the_vocabulary_are_refused(tiny_tokenizer):
    assert tiny_tokenizer.vocabulary == 30
    assert tiny_tokenizer.encode([(29,)], 8) == [[2, 29, 3]]
    with pytest.raises(DataError, match=r"contains 30,.* has only 30 ids: set `tokenizer`"):
        tiny_tokenizer.encode([(4, 30, 5)], 8)


def test_padding_and_truncation_of_the_backend_are_ignored():
    plain, padded = backend("< $A >"), backend("< $A >")
    padded.enable_padding(length=12)
    padded.enable_truncation(2)
    first, second = wrap(plain), wrap(padded)
    assert second.encode(["a"], 8) == first.encode(["a"], 8) == [[2, 0, 3]]
    assert second.digest == first.digest


def test_the_digest_depends_on_what_decides_the_ids():
    digests = {wrap(backend(single)).digest for single in (None, "$A >", "< $A >", "< $A >")}
    assert len(digests) == 3


def test_encoding_does_not_change_the_digest(tiny_backend):
    before = wrap(tiny_backend)
    before.encode(["a b c"], 4)
    assert wrap(tiny_backend).digest == before.digest


def test_load_a_folder(tokenizer_folder, tiny_tokenizer):
    loaded = load(str(tokenizer_folder))
    assert loaded.encode(["A b", (6,)], 8) == [[2, 4, 5, 3], [2, 6, 3]]
    assert (loaded.pad, loaded.vocabulary) == (0, tiny_tokenizer.vocabulary)
    assert load(str(tokenizer_folder)).digest == loaded.digest


def test_the_padding_token_is_the_folders(tokenizer_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tokenizer_folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "[SEP]"}))
    assert load(str(folder)).pad == 3


@pytest.mark.parametrize("name", ["empty", "broken"])
def test_a_folder_without_a_tokenizer(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    if name == "broken":
        (folder / "tokenizer.json").write_text("{")
        (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(EncoderError) as caught:
        load(str(folder))
    why = {"empty": "there is no tokenizer in it", "broken": "no tokenizer could be loaded"}
    assert str(caught.value).startswith(f"`tokenizer={folder}`: {why[name]}")
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def folder_of(tmp_path, backend, **config):
    """Writes a folder with a backend and a tokenizer_config.json."""
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(tmp_path)


BOS_AND_EOS = {"bos_token": "<", "eos_token": ">", "unk_token": "b"}


@pytest.mark.parametrize(
    ("single", "config", "ids"),
    [
        # As in E5-Mistral: the file adds the first token alone, the flag the last one too.
        ("< $A", {"add_bos_token": True, "add_eos_token": True}, [2, 0, 3]),
        ("< $A >", {"add_bos_token": True, "add_eos_token": True}, [2, 0, 3]),
        ("< $A >", {}, [2, 0, 3]),
        (None, {"add_eos_token": True}, [0, 3]),
        (None, {"add_eos_token": True, "eos_token": {"content": ">"}}, [0, 3]),
        (None, {"add_eos_token": True, "eos_token": None}, [0]),
        ("< $A >", {"add_bos_token": False}, [2, 0, 3]),
        ("< $A >", {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, [0, 3]),
        ("< $A >", {"add_eos_token": False, "tokenizer_class": "GemmaTokenizerFast"}, [2, 0]),
    ],
)
def test_flags_of_the_folder_add_and_remove_special_tokens(tmp_path, single, config, ids):
    loaded = load(folder_of(tmp_path, backend(single), **(BOS_AND_EOS | config)))
    assert loaded.encode(["a", (0,)], 8) == [ids, ids]
    room = 4 - len(loaded.opening) - len(loaded.closing)
    assert loaded.encode(["a a a a a a"], 4) == [
        [*loaded.opening, *[0] * room, *loaded.closing]
    ]


def wordpiece():
    """Returns a cased WordPiece tokenizer, and its ids of `Ab ab`."""
    made = Backend(models.WordPiece({"[UNK]": 0, "Ab": 1, "ab": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, [1, 2]


def byte_level():
    """Returns a BPE tokenizer that splits at digits, and its ids of `a12`."""
    made = Backend(models.BPE({"a": 0, "1": 1, "2": 2, "12": 3}, [("1", "2")]))
    made.pre_tokenizer = pre_tokenizers.Split("a", "isolated")
    return made, [0, 3]


@pytest.mark.parametrize(
    ("make", "text", "model_type", "tokenizer_class"),
    [
        (wordpiece, "Ab ab", "bert", "BertTokenizerFast"),
        (byte_level, "a12", "qwen2", "LlamaTokenizerFast"),
        (byte_level, "a12", "qwen2", "Qwen2TokenizerFast"),
        (byte_level, "a12", "t5", "T5TokenizerFast"),
    ],
)
def test_the_file_decides_whatever_the_class_says(
    tmp_path, make, text, model_type, tokenizer_class
):
    made, ids = make()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    name = folder_of(tmp_path, made, tokenizer_class=tokenizer_class, do_lower_case=True)
    assert load(name).encode([text], 8) == [ids]


def test_a_class_that_changes_the_file_is_reported_with_an_example(tmp_path, caplog):
    made, _ = wordpiece()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    # The example has a word that the class lowercases.
    made.add_tokens(["Hello", "hello", "World", "world"])
    load(folder_of(tmp_path, made, tokenizer_class="BertTokenizerFast", unk_token="[UNK]"))
    assert "using tokenizer.json and its flags, as transformers 4 does" in caplog.text
    assert "'Hello World': [" in caplog.text


def test_the_vocabulary_ends_at_the_highest_id():
    gap = Backend(models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    gap.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = wrap(gap)
    assert made.vocabulary == 70_001
    assert made.encode(["a b", (70_000,)], 8) == [[0, 70_000], [70_000]]


def test_special_tokens_are_found_where_no_letter_is_known():
    unknown = Backend(models.WordLevel({"<": 0, ">": 1}, unk_token="<"))
    unknown.post_processor = processors.TemplateProcessing(
        single="< $A >", special_tokens=[("<", 0), (">", 1)]
    )
    empty = Backend(models.BPE({"<": 0, ">": 1}, []))  # it drops what it does not know
    empty.post_processor = unknown.post_processor
    for made in (wrap(unknown), wrap(empty)):
        assert (made.opening, made.closing) == ((0,), (1,))


@pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed"
)
def test_without_sentencepiece_the_remedy_names_it(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(EncoderError, match="pip install sentencepiece"):
        load(str(tmp_path))
