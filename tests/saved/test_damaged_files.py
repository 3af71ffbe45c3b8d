"""Files that are damaged, foreign, too new or tampered with: one clear error, and nothing runs."""

import json
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

import fxquant
from fxquant.errors import FileError
from fxquant.saved.container import VERSION, read_file, write_file
from tests import laws
from tests.strategies import chain

safetensors = pytest.importorskip(
    "safetensors.torch", reason="safetensors is in the extra `save`"
)
SPEC = chain("conv", "bn", "relu", "max_pool", "mixed", "sigmoid", head=True)
RAN = Path("a planted payload ran")
PAYLOAD = f"open({str(RAN)!r}, 'w')"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A prepared and a converted network, as files."""
    folder = tmp_path_factory.mktemp("files")
    prepared = fxquant.prepare_qat(SPEC.build())
    laws.settle(prepared)
    fxquant.save(prepared, folder / "prepared")
    fxquant.save(fxquant.convert(prepared), folder / "quantized")
    return folder


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """In a folder of its own, in which a payload would leave its trace."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not RAN.exists()


def mutated(content: bytes, rng: random.Random) -> bytes:
    data, at = bytearray(content), rng.randrange(len(content))
    if rng.random() < 0.5:
        at = rng.randrange(min(len(content), 2000))  # the header, where it hurts most
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        del data[at : at + rng.randrange(1, 9)]
    else:
        data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


@pytest.mark.parametrize("name", ["prepared", "quantized"])
def test_a_hundred_fuzzed_files_of_each_kind(files, name):
    rng = random.Random(name)
    content, expected = (files / name).read_bytes(), fxquant.load(files / name)
    refused = []
    for i in range(100):
        path = Path(f"fuzzed{i}")
        path.write_bytes(mutated(content, rng))
        try:
            again = fxquant.load(path)
        except FileError as error:
            refused.append((str(path), str(error)))
        else:  # a space for a space, say
            laws.assert_equal(again(SPEC.inputs()), expected(SPEC.inputs()))
    assert len(refused) > 90
    assert all(path in text and "What to do" in text for path, text in refused)


# ------------------------------------------------------------------------ foreign and damaged


class Bomb:
    def __reduce__(self):
        return exec, (PAYLOAD,)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(Bomb()))


def write_checkpoint(path, content):
    torch.save({"weight": torch.ones(1), "planted": Bomb()}, path)


def write_pickle_behind(path, content):
    path.write_bytes(content + pickle.dumps(Bomb()))


def write_pickled_tensor(path, content):
    """The bytes of a tensor are a pickle."""
    data = torch.frombuffer(bytearray(pickle.dumps(Bomb())), dtype=torch.uint8)
    text, tensors = read_file(content)
    write_file(path, text, tensors | {"planted": data})


def write_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))


def with_metadata(path, **changes):
    def write(to, content):
        _, tensors = read_file(path(content))
        with safetensors.safe_open(path(content), framework="pt") as file:
            metadata = file.metadata() | changes
        safetensors.save_file(tensors, to, {k: v for k, v in metadata.items() if v is not None})

    return write


def of(content):
    return content


WHOLE = {
    "empty": lambda path, _: path.write_bytes(b""),
    "text": lambda path, _: path.write_text("weights: 1 2 3\n"),
    "a header that is too long": lambda path, _: path.write_bytes(b"\xff" * 8 + b"{}"),
    "a header and no more": lambda path, file: path.write_bytes(file.read_bytes()[:5000]),
    "without its last byte": lambda path, file: path.write_bytes(file.read_bytes()[:-1]),
    "a pickle": write_pickle,
    "a checkpoint": write_checkpoint,
    "a zip": write_zip,
    "a pickle behind it": lambda path, file: write_pickle_behind(path, file.read_bytes()),
    "someone else's safetensors": lambda path, _: safetensors.save_file(
        {"weight": torch.ones(2)}, path, {"format": "pt"}
    ),
    "a newer version": with_metadata(of, fxquant=str(VERSION + 1)),
    "no number for a version": with_metadata(of, fxquant="one"),
    "no digest": with_metadata(of, sha256=None),
    "another text": with_metadata(of, network="{}"),
}


@pytest.mark.parametrize("write", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("name", ["prepared", "quantized"])
def test_foreign_and_damaged_files(files, name, write):
    path = Path("damaged")
    write(path, files / name)
    with pytest.raises(FileError, match="damaged.*\n?What to do"):
        fxquant.load(path)


def test_messages_say_which_of_the_three_it_is(files):
    for write, says in (
        (WHOLE["a newer version"], "has format 2; this fxquant reads formats up to 1"),
        (WHOLE["someone else's safetensors"], "was not written by fxquant.save"),
        (WHOLE["a pickle"], "is no safetensors file"),
        (WHOLE["another text"], "is damaged"),
    ):
        write(Path("damaged"), files / "quantized")
        with pytest.raises(FileError, match=says):
            fxquant.load("damaged")


def test_bytes_of_a_pickle_as_a_tensor_are_bytes(files):
    write_pickled_tensor(Path("planted"), files / "quantized")
    fxquant.load("planted")


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        fxquant.load("nowhere")


# ------------------------------------------------------------------------ tampered, digest and all


def node(data, **fields):
    """The first node with these fields."""
    return next(n for n in data["graph"] if all(n[k] == v for k, v in fields.items()))


def module(data, path):
    return next(m for m in data["modules"] if m["path"] == path)


def site(data):
    return next(m for m in data["modules"] if m["class"] == "fxquant.IntegerOp")


def call(data, target, *args):
    """Let the first node behind the input call a function instead."""
    found = next(n for n in data["graph"] if n["op"] == "call_module")
    found |= {"op": "call_function", "target": target}
    if args:
        found["args"] = {"tuple": list(args)}


def behind(data, op, target):
    """Another node behind the integers, whose result is what the network gives."""
    output = data["graph"][-1]
    new = output | {"name": "new", "op": op, "target": target}
    data["graph"].insert(-1, new)
    output["args"] = {"tuple": [{"node": "new"}]}


def rename(data, name):
    """A name for a module that would end the string in which generated code has it."""
    path = site(data)["path"]
    called = node(data, target=path)
    for entry in (*data["modules"], *data["tensors"]):
        entry["path"] = entry["path"].replace(path, f"fxquant.{name}")
    called["target"] = f"fxquant.{name}"


def deep(data):
    node(data, op="output")["args"] = 0
    return json.dumps(data).replace('"args": 0', f'"args": {"[" * 100000}{"]" * 100000}')


TAMPERED = {
    "a function of the system": lambda d: call(d, "os.system", PAYLOAD),
    "a builtin": lambda d: call(d, "builtins.exec", PAYLOAD),
    "a function of torch that unpickles": lambda d: call(d, "torch.load", "planted"),
    "a way to any attribute": lambda d: call(d, "operator.attrgetter", "__globals__"),
    "a way to any method": lambda d: call(d, "operator.methodcaller", "__reduce__"),
    "an attribute behind getattr": lambda d: call(
        d, "builtins.getattr", {"node": "x"}, "__class__"
    ),
    "a method behind on_copy": lambda d: call(d, "fxquant.on_copy", {"node": "x"}, "__reduce__"),
    "a private method": lambda d: behind(d, "call_method", "__reduce__"),
    "an attribute of every object": lambda d: node(d, op="call_module").update(
        op="get_attr", target="__class__.__init__"
    ),
    "a placeholder with a default": lambda d: node(d, op="placeholder").update(
        target=f"x={PAYLOAD}"
    ),
    "a node with code for a name": lambda d: node(d, op="call_module").update(name=PAYLOAD),
    "a keyword with code": lambda d: node(d, op="call_module").update(
        kwargs={"dict": [[f"a={PAYLOAD}, b", 1]]}
    ),
    "a path with code": lambda d: rename(d, f'", {PAYLOAD}, "'),
    "a name with code": lambda d: d.update(name=f"A: {PAYLOAD}"),
    "a class of the system": lambda d: site(d).update({"class": "subprocess.Popen"}),
    "a class that torch.nn only imports": lambda d: site(d).update({"class": "torch.nn.Parameter"}),
    "hooks": lambda d: site(d)["attributes"].update(_forward_hooks={"dict": [[0, "x"]]}),
    "another forward": lambda d: site(d)["attributes"].update(forward={"function": "os.system"}),
    "an operator nobody knows": lambda d: site(d)["attributes"].update(op={"operator": "exec"}),
    "a kind of value nobody knows": lambda d: site(d)["attributes"].update(op={"pickle": "gASV"}),
    "a type that is none": lambda d: site(d)["attributes"].update(text={"torch": "load"}),
    "99 bits": lambda d: site(d)["attributes"]["scheme"]["QuantScheme"].update(bits=99),
    "a tensor that is missing": lambda d: d["tensors"][0].update(tensor="nowhere"),
    "a number that is missing": lambda d: d["tensors"].remove(
        next(t for t in d["tensors"] if t["path"].endswith(".multiplier"))
    ),
    "an order that is none": lambda d: d["tensors"][0].update(order=[0, 0, 0, 7]),
    "a path out of the tree": lambda d: d["tensors"][0].update(path="nowhere.weight"),
    "a node that reads a later one": lambda d: d["graph"].reverse(),
    "no output": lambda d: d["graph"].pop(),
    "two nodes of one name": lambda d: d["graph"].insert(1, dict(d["graph"][0])),
    "an integer that nothing quantized": lambda d: node(d, op="call_module").update(
        target=site(d)["path"]
    ),
    "a stage that no file has": lambda d: d.update(stage="FLOAT"),
    "a stage that does not exist": lambda d: d.update(stage="READY"),
    "no modules": lambda d: d.update(modules=[]),
    "modules that are a number": lambda d: d.update(modules=3),
    "no graph": lambda d: d.pop("graph"),
    "a list for everything": lambda d: "[]",
    "nothing": lambda d: "null",
    "no JSON": lambda d: "{",
    "no end of lists": deep,
    "a number without end": lambda d: json.dumps(d).replace("[1, 1]", f"[1, {'9' * 5000}]"),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_tampered_files_with_the_right_digest(files, tamper):
    text, tensors = read_file(files / "quantized")
    data = json.loads(text)
    changed = tamper(data)
    write_file("tampered", changed if isinstance(changed, str) else json.dumps(data), tensors)
    with pytest.raises(FileError, match="tampered"):
        fxquant.load("tampered")


def test_an_unharmed_file_is_none_of_these(files):
    text, tensors = read_file(files / "quantized")
    write_file("tampered", json.dumps(json.loads(text)), tensors)
    fxquant.load("tampered")


def test_a_string_in_the_graph_is_a_string(files):
    """It stands in generated code, as repr gives it."""
    text, tensors = read_file(files / "quantized")
    data = json.loads(text)
    output = node(data, op="output")
    output["args"] = {"tuple": [{"tuple": [output["args"]["tuple"][0], f'"); {PAYLOAD}; ("']}]}
    write_file("planted", json.dumps(data), tensors)
    assert PAYLOAD in fxquant.load("planted")(SPEC.inputs())[1]


def test_a_write_that_fails_leaves_the_file_as_it_was(files, monkeypatch):
    quantized = fxquant.load(files / "quantized")
    path = Path("network")
    fxquant.save(quantized, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        fxquant.save(quantized, path)
    assert path.read_bytes() == before
    assert [p.name for p in Path().iterdir()] == ["network"]
