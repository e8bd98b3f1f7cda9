from jaxval.checkpoints.trees import below, flatten, parse, show


def test_flatten_spells_every_kind_of_key():
    assert flatten({"a": [1, {"b": 2}], "c": (3,)}) == {
        ("a", "0"): 1,
        ("a", "1", "b"): 2,
        ("c", "0"): 3,
    }


def test_a_path_is_spelled_and_read_alike():
    for path in ((), ("params",), ("default", "params", "0")):
        assert parse(show(path)) == path


def test_below_a_node_stand_its_leaves_and_no_namesakes():
    leaves = {("a", "b"): 1, ("a", "c", "d"): 2, ("ab", "b"): 3}
    assert below(("a",), leaves) == {("b",): 1, ("c", "d"): 2}
