from jaxval.checkpoints.trees import below, flatten, parse, show


def test_flatten_spells_every_kind_of_key():
    assert flatten({"a": [1, {"b": 2}], "c": (3,)}) == {
        ("a", "0"): 1,
        ("a", "1", "b"): 2,
        ("c", "0"): 3,
    }


def test_parse_is_the_inverse_of_show():
    for path in ((), ("params",), ("default", "params", "0")):
        assert parse(show(path)) == path


def test_below_returns_only_leaves_below_the_node():
    leaves = {("a", "b"): 1, ("a", "c", "d"): 2, ("ab", "b"): 3}
    assert below(("a",), leaves) == {("b",): 1, ("c", "d"): 2}
