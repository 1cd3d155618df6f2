"""Checkpoints that someone has damaged or made: refused with one line, without their code, and without the memory that
they claim to need.
"""

import io
import os
import pickle
import socket
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.run import archive, checkpoint

STATE = {
    "iteration": 7,
    "seconds": 1.5,
    "batch": 2,
    "best": {"iteration": 4, "dice": 0.5, "per_case": {"A": [0.5]}},
    "config": {"volume": (16, 16, 16), "amp": None},
    "spacing": [1.0, 1.0, 2.0],
    "volume": [16, 16, 16],
    "training": ["B"],
    "validation": ["A"],
    "optimizer": {},
    "scaler": {},
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("intact") / "x.pt"
    checkpoint.save(path, VNet(base_channels=1), **STATE)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, intact):
    (tmp_path / "x.pt").write_bytes(intact)
    return tmp_path / "x.pt"


def changed(path, **parts):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **parts}, path)
    return checkpoint.load(path)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_it_reads_what_torch_reads(path):
    expected, found = torch.load(path, weights_only=True), checkpoint.load(path)
    assert list(found) == list(expected)
    for name, weight in expected.pop("model").items():
        assert torch.equal(found["model"][name], weight)
        assert found["model"][name].stride() == weight.stride()
    assert all(found[name] == value for name, value in expected.items())


def test_every_flipped_bit_is_noticed_or_harmless(path):
    """PyTorch verifies no checksum; here one bit of a record is flipped."""
    original = checkpoint.load(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        members = [member for member in file.infolist() if member.file_size]
    for member in [*members[:8], *members[8::10], *members[-5:]]:
        # behind the header, which has as much padding as its length says
        name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
        start = member.header_offset + 30 + name + extra
        for at in {start, start + member.file_size // 2, start + member.file_size - 1}:
            damaged = bytearray(content)
            damaged[at] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"x.pt: damaged, or not a checkpoint"):
                checkpoint.load(path)
    path.write_bytes(content)
    assert checkpoint.load(path)["iteration"] == original["iteration"]


WRONG = [
    ({"format": "1"}, "format '1', this program reads 1"),
    ({"format": True}, "format True, this program reads 1"),
    ({"format": nested(50)}, "format a list, this program reads 1"),
    ({"iteration": -1}, "its iteration must be a whole number, 0 or more; got -1"),
    ({"iteration": 7.0}, "its iteration must be a whole number, 0 or more; got 7.0"),
    ({"iteration": 10**500}, "its iteration must be .*; got a number of too many digits"),
    ({"iteration": torch.zeros(3)}, "its iteration must be a whole number, 0 or more; got a Tensor"),
    ({"seconds": float("nan")}, "its seconds must be a number, 0 or more; got nan"),
    ({"seconds": float("inf")}, "its seconds must be a number, 0 or more; got inf"),
    ({"batch": 0}, "its batch must be a whole number above 0; got 0"),
    ({"spacing": [1.0, 0.0, 1.0]}, r"\(its spacing must be three numbers from .*; got \[1.0, 0.0, 1.0\]\)"),
    ({"spacing": [1.0, float("nan"), 1.0]}, r"\(its spacing must be three numbers from"),
    ({"spacing": "abc"}, r"does not say its spacing and size \(its spacing must be three .*; got 'abc'\)"),
    ({"volume": [16, 16, 10**9]}, r"\(its volume must be three whole numbers from 1 to 1048576; got"),
    ({"volume": [True, 16, 16]}, r"\(its volume must be three whole numbers"),
    ({"volume": nested(50)}, r"\(its volume must be three whole numbers .*; got a list\)"),
    ({"validation": "A"}, r"\(its validation must be a list of names; got 'A'\)"),
    ({"validation": [1]}, r"\(its validation must be a list of names; got \[1\]\)"),
    ({"validation": ["\ud800"]}, r"\(its validation must be a list of names"),
    ({"training": {"A": 1}}, "its training must be a list of names; got a dict"),
    ({"best": 5}, "its best must be the best validation; got 5"),
    ({"best": {"iteration": "x"}}, "its best iteration must be a whole number, 0 or more; got 'x'"),
    ({"best": {"dice": 2.0}}, "its best dice must be a number from -1 to 1; got 2.0"),
    ({"best": {"per_case": {"A": 0.5}}}, "its best per_case must be a list of Dice for each case; got a dict"),
    ({"best": {"per_case": {"A": ["x"]}}}, "its best per_case must be a list of Dice for each case; got a dict"),
    ({"best": {"per_case": {"A": [0.5, 0.5]}}}, "its best per_case has 2 classes, and its network 1"),
    ({"config": {"volume": nested(3)}}, "its config must be the settings of a run; got a dict"),
    ({"config": []}, r"its config must be the settings of a run; got \[\]"),
    ({"optimizer": 5}, "its optimizer must be the state of an optimiser; got 5"),
    ({"scaler": []}, r"its scaler must be the state of a scaler; got \[\]"),
    ({"model": 5}, r"its weights do not fit its architecture \(its model must be a dict of tensors; got 5\)"),
    ({"model": {}}, r"its weights do not fit its architecture \(missing down.0.activation.weight\)"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_field_is_named(path, parts, message):
    with pytest.raises(InputError, match=message) as raised:
        changed(path, **parts)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base_channels", 512, r"its weights do not fit its architecture \(size mismatch for left.0.layers.0"),
        ("base_channels", 10**9, "its architecture's base_channels must be a whole number from 1 to 65536"),
        ("num_classes", 10**9, "its architecture's num_classes must be a whole number from 1 to 256"),
        ("num_classes", 250, r"its weights do not fit its architecture \(size mismatch for head.weight"),
        ("in_channels", 0, "its architecture's in_channels must be a whole number from 1 to 65536; got 0"),
        ("topology", "unet", "its architecture's topology must be one of paper, caffe; got 'unet'"),
        ("topology", [], r"its architecture's topology must be one of paper, caffe; got \[\]"),
    ],
)
def test_an_architecture_that_the_weights_have_not(path, name, value, message):
    """A network of 512 channels takes 15 GB; none is made."""
    architecture = torch.load(path, weights_only=True)["architecture"]
    best = {"iteration": 0, "dice": -1.0, "per_case": None}
    with pytest.raises(InputError, match=message):
        changed(path, architecture={**architecture, name: value}, best=best)


def test_sizes_are_compared_without_memory():
    network = checkpoint.skeleton({"in_channels": 1, "num_classes": 256, "base_channels": 1 << 16, "topology": "paper"})
    assert {weight.device.type for weight in network.state_dict().values()} == {"meta"}


def head(change):
    return lambda weights: {**weights, "head.weight": change(weights["head.weight"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (head(lambda w: torch.zeros(1).expand(10**12)), "has a tensor that is larger than its numbers"),
        (head(lambda w: torch.zeros(1).expand(w.shape)), "has a tensor that is larger than its numbers"),
        (head(lambda w: w.to_sparse()), "names torch"),
        (head(lambda w: w.to(torch.complex64)), "names torch.ComplexFloatStorage"),
        (head(lambda w: w.long()), "names torch.LongStorage"),
        (head(lambda w: w.bool()), "names torch.BoolStorage"),
        (head(lambda w: w.half()), "names torch.HalfStorage"),
        (head(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)), "names "),
        (head(lambda w: torch.nested.nested_tensor([w[0], w[1]])), "names "),
        (head(lambda w: torch.nn.Parameter(w)), "names torch._utils._rebuild_parameter"),
        (head(lambda w: 5), "head.weight is 5, not a tensor of torch.float32"),
        (head(lambda w: w[:, :, 0]), r"size mismatch for head.weight: \[2, 2, 1, 1\], not \[2, 2, 1, 1, 1\]"),
        (lambda weights: {**weights, "more": torch.zeros(1)}, r"\(unexpected more\)"),
        (lambda weights: {**weights, 5: torch.zeros(1)}, r"\(unexpected 5\)"),
        (lambda weights: {**weights, (1, 2): torch.zeros(1)}, "has a name that is neither text nor number"),
    ],
    ids=range(15),
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_none(path, change, message):
    weights = torch.load(path, weights_only=True)["model"]
    with pytest.raises(InputError, match=message):
        changed(path, model=change(weights))


def rezipped(path, change):
    """Writes the archive again, with what `change` returns for each record: content and compression."""
    records = {}
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            records[member.filename] = file.read(member)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records.items():
            content, compression = change(name, content)
            file.writestr(name, content, compression)


def test_a_bomb_is_not_unpacked(path):
    rezipped(
        path,
        lambda name, content: (
            (b"\0" * (1 << 27), zipfile.ZIP_DEFLATED) if name.endswith("/data/0") else (content, zipfile.ZIP_STORED)
        ),
    )
    tracemalloc.start()
    with pytest.raises(InputError, match=r"damaged, or not a checkpoint \(a record is compressed\)"):
        checkpoint.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_records_that_overlap(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start, first = file.start_dir, file.infolist()[0].header_offset
    # every record of the list is at the place of the first, and as long as the file
    at = content.index(b"PK\x01\x02", start)
    while at >= 0:
        struct.pack_into("<II", content, at + 20, len(content), len(content))
        struct.pack_into("<I", content, at + 42, first)
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"its records are longer than the file"):
        checkpoint.load(path)


def with_pickle(path, content):
    rezipped(path, lambda name, old: (content if name.endswith("data.pkl") else old, zipfile.ZIP_STORED))


@pytest.mark.parametrize(
    "content",
    [
        # 10 GB of a bytearray; a memo of 32 GB; a text, a number of 4 GB; names of modules; nothing at all
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85R.",
        b"\x80\x02K\x01r\xff\xff\xff\xff.",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02}K\x01s.",
        b"\x80\x02h\x05.",
        b"\x80\x02(u.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02" + b")\x85" * 10 + b".",
        b"\x80\x02K\x01" + b"\x85" * 100_000 + b"K\x01\x86}q\x00K\x01K\x02s.",
        b"\x80\x02}K\x00" + b"\x85" * 100_000 + b"K\x02s.",
        b"",
    ],
    ids=range(15),
)
def test_pickles_that_torch_never_writes(path, content, tmp_path):
    with_pickle(path, content)
    with pytest.raises(InputError, match=r"damaged, or not a checkpoint|not a checkpoint of this program"):
        checkpoint.load(path)


def test_lists_that_contain_each_other_many_times(path):
    """Walking through all of them would never end."""
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    with pytest.raises(InputError, match=r"its training must be a list of names; got a list"):
        changed(path, training=laughs)
    itself = []
    itself.append(itself)
    with pytest.raises(InputError, match="its training must be"):
        changed(path, training=itself)
    many = [0.5]
    changed(path, training=[], best={"per_case": {str(i): many for i in range(10_000)}})


def test_a_description_that_is_too_long(path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(InputError, match="its description is too long"):
        checkpoint.load(path)


def make_socket(path):
    folder = os.getcwd()
    os.chdir(path.parent)
    try:
        # a path may be too long for a socket
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(folder)


NO_FILES = [os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/dev/tty")]


@pytest.mark.parametrize("make", NO_FILES, ids=["FIFO", "socket", "zeros", "terminal"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x.pt: can't be read \(not a regular file\)"):
        checkpoint.load(tmp_path / "x.pt")


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    for value in (torch.zeros(2, dtype=torch.int64), torch.zeros(2).to_sparse()):
        with pytest.raises(TypeError, match=r"state\['x'\] must be a dense tensor of float32; got torch"):
            checkpoint.save(tmp_path / "x.pt", VNet(base_channels=1), x=value)
    assert not list(Path(tmp_path).iterdir())


def test_no_code_runs(path, capsys):
    class Run:
        def __reduce__(self):
            return print, ("this ran",)

    for save in (torch.save, lambda value, file: file.write(pickle.dumps(value))):
        buffer = io.BytesIO()
        save(Run(), buffer)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(InputError, match="damaged, or not a checkpoint"):
            checkpoint.load(path)
    assert "this ran" not in capsys.readouterr().out
