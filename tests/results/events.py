"""Reads TensorBoard's event files."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """Yields every event: a record is its length, a checksum, the event, a checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def points(folder):
    """Returns the points of each curve: displayed name -> list of (step, value)."""
    curves = {}
    for event in events(folder):
        for value in event.summary.value:
            name = value.metadata.display_name or value.tag
            curves.setdefault(name, []).append((event.step, value.simple_value))
    return curves
