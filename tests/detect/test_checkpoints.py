"""Loading weights: formats, partial fits, and files that are old, damaged or hostile."""

from __future__ import annotations

import functools
import io
import os
import pickle
import pickletools
import re
import socket
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import types
import zipfile
from collections import OrderedDict, deque
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

from detect.cli import app
from detect.config import build_model
from detect.models.backbones import ResNet
from detect.models.checkpoints import load_weights, read_weights
from detect.models.necks.fpn import FPN
from detect.models.pretrained import resolve_pretrained
from detect.models.unpickling import _check_archive
from detect.trained import load_trained, read_classes
from dpipe.errors import InputError


def make_model(classes: int = 3) -> nn.Module:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, classes)))
    torch.manual_seed(classes)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def blank(classes: int = 3) -> nn.Module:
    model = make_model(classes)
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model


def assert_equal(model: nn.Module, reference: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name


def save_bare(model, path):
    torch.save(model.state_dict(), path)


def save_wrapped(model, path):
    torch.save({"meta": {"epoch": 12, "CLASSES": ("a", "b", "c")}, "state_dict": model.state_dict()}, path)


def save_legacy(model, path):
    torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=False)


def save_parallel(model, path):
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, path)


def save_averaged(model, path):
    torch.save({"model": AveragedModel(model).state_dict()}, path)


def save_compiled(model, path):
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}, path)


def save_tensors(model, path):
    save_file(model.state_dict(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_parallel_tensors(model, path):
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(state, path.with_suffix(".safetensors"), metadata={"format": "pt"})
    return path.with_suffix(".safetensors")


WAYS_TO_SAVE = [
    save_bare,
    save_wrapped,
    save_legacy,
    save_parallel,
    save_averaged,
    save_compiled,
    save_tensors,
    save_parallel_tensors,
]


@pytest.mark.parametrize("save", WAYS_TO_SAVE)
def test_formats(tmp_path, save):
    reference, model = make_model(), blank()
    path = tmp_path / "weights.pth"
    path = save(reference, path) or path
    report = load_weights(model, path, strict=True)
    assert_equal(model, reference)
    assert (len(report.loaded), report.left_out, report.missing) == (9, [], [])


def test_what_does_not_fit_is_left_out_and_told(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**make_model(81).state_dict(), "head.weight": torch.ones(2)}, path)
    model = blank(3)
    model.add_module("extra", nn.Linear(1, 1))
    report = load_weights(model, str(path))
    assert_equal(model.conv, make_model(81).conv)
    assert model.fc.weight.eq(0).all()
    assert dict(report.left_out) == {
        "fc.weight": "shape [81, 4], the model's is [3, 4]",
        "fc.bias": "shape [81], the model's is [3]",
        "head.weight": "the model has no such tensor",
    }
    assert report.missing == ["extra.weight", "extra.bias"]
    assert report.table(rows=2).splitlines() == [
        f"{path}: 7 tensors loaded",
        "  left out: 3",
        "    fc.weight (shape [81, 4], the model's is [3, 4])",
        "    fc.bias (shape [81], the model's is [3])",
        "    ... and 1 more",
        "  missing: 2",
        "    extra.weight",
        "    extra.bias",
    ]


def test_strict_refuses_what_does_not_fit_and_changes_nothing(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**make_model(81).state_dict(), "head.weight": torch.ones(2)}, path)
    model = blank(3)
    with pytest.raises(InputError, match=r"in 3 of the 10 tensors that either has: fc.weight \(shape \[81") as info:
        load_weights(model, path, strict=True)
    assert "\n" not in str(info.value)
    assert_equal(model, blank(3))


def test_a_misfit_counts_the_tensors_of_both(tmp_path):
    strange = {f"stem.{number}": torch.ones(1) for number in range(20)}
    state = {"fc.bias": torch.ones(3), **strange, "auxiliary_head.fc.bias": torch.ones(1), "ema_fc_bias": torch.ones(3)}
    torch.save(state, tmp_path / "weights.pth")
    # Of the model's 9 one is there, one is BatchNorm's counter, and 7 are missing.
    with pytest.raises(InputError, match=r"in 27 of the 29 tensors that either has: stem\.0 "):
        load_weights(blank(), tmp_path / "weights.pth", strict=True)


def test_parts_that_a_model_lacks_and_averaged_copies_are_no_fault(tmp_path):
    path = tmp_path / "weights.pth"
    copies = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in make_model().state_dict().items()}
    assert "ema_bn_running_mean" in copies
    extra = {"roi_head.mask_head.upsample.bias": torch.ones(1), "auxiliary_head.fc.bias": torch.ones(1)}
    torch.save({**make_model().state_dict(), **copies, **extra}, path)
    model = blank()
    report = load_weights(model, path, strict=True)
    assert_equal(model, make_model())
    reasons = dict(report.left_out)
    assert {reasons.pop(name) for name in copies} == {"a second copy of the weights, kept to average them"}
    assert reasons == {
        "roi_head.mask_head.upsample.bias": "the model has no roi_head.mask_head",
        "auxiliary_head.fc.bias": "the model has no auxiliary_head",
    }
    model.add_module("roi_head", nn.ModuleDict({"mask_head": nn.ModuleDict({"upsample": nn.Linear(2, 2)})}))
    with pytest.raises(InputError, match=r"roi_head.mask_head.upsample.bias \(shape \[1\], the model's is \[2\]\)"):
        load_weights(model, path, strict=True)


def test_what_a_trained_model_has_no_use_for_is_told(tmp_path, shapes):
    config = shapes.config()
    state = build_model(config, 2, pretrained=False).state_dict()
    torch.save({"meta": {"CLASSES": ("box", "disc")}, "state_dict": state}, tmp_path / "whole.pth")
    lines: list[str] = []
    load_trained(config, tmp_path / "whole.pth", say=lines.append)
    assert lines == []
    extra = {"ema_neck_lateral_convs_0_conv_bias": torch.ones(1)}
    torch.save({"meta": {"CLASSES": ("box", "disc")}, "state_dict": {**state, **extra}}, tmp_path / "averaged.pth")
    load_trained(config, tmp_path / "averaged.pth", say=lines.append)
    (table,) = lines
    assert table.splitlines()[1:] == [
        "  left out: 1",
        "    ema_neck_lateral_convs_0_conv_bias (a second copy of the weights, kept to average them)",
    ]


def test_tensors_of_the_same_size_and_another_shape_are_left_out(tmp_path):
    torch.save({**make_model().state_dict(), "fc.weight": torch.ones(4, 3)}, tmp_path / "weights.pth")
    report = load_weights(blank(), tmp_path / "weights.pth")
    assert report.left_out == [("fc.weight", "shape [4, 3], the model's is [3, 4]")]


def test_strict_refuses_what_is_missing(tmp_path):
    state = make_model().state_dict()
    del state["conv.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"in 1 of the 9 tensors that either has: conv.bias \(missing\)"):
        load_weights(blank(), tmp_path / "weights.pth", strict=True)


def test_an_average_that_the_model_has_a_place_for_is_loaded(tmp_path):
    model = blank()
    model.register_buffer("ema_fc_bias", torch.zeros(3))
    torch.save({**make_model().state_dict(), "ema_fc_bias": torch.ones(3)}, tmp_path / "weights.pth")
    assert load_weights(model, tmp_path / "weights.pth", strict=True).left_out == []
    assert model.ema_fc_bias.tolist() == [1, 1, 1]


def test_names_that_only_some_tensors_begin_with_stay(tmp_path):
    torch.save(
        {"module.weight": torch.ones(1), "n_averaged": torch.ones(1), "weight": torch.ones(1)}, tmp_path / "a.pth"
    )
    assert list(read_weights(tmp_path / "a.pth")) == ["module.weight", "n_averaged", "weight"]
    torch.save({"module.module.weight": torch.ones(1), 3: torch.ones(1)}, tmp_path / "b.pth")
    assert list(read_weights(tmp_path / "b.pth")) == ["weight"]


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
    assert list(read_weights("~/weights.pth")) == ["weight"]


def test_nothing_fits(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"nothing fits the model: a, b of the checkpoint, conv.weight, .* and 6 more"):
        load_weights(blank(), path)


def test_counters_of_batch_norm_may_be_absent(tmp_path):
    path = tmp_path / "weights.pth"
    state = {name: tensor for name, tensor in make_model().state_dict().items() if "num_batches" not in name}
    torch.save(state, path)
    assert load_weights(blank(), path, strict=True).missing == []


def test_openmmlab_weights_load_by_name(parity):
    case = parity("cascade_mask_rcnn_r50_fpn")
    model = nn.ModuleDict({"backbone": ResNet(50, 8), "neck": FPN((32, 64, 128, 256), 16)})
    report = load_weights(model, case.folder / "weights.safetensors")
    assert report.missing == []
    assert {name.split(".")[0] for name, _ in report.left_out} == {"rpn_head", "roi_head"}
    assert torch.equal(model["neck"].fpn_convs[3].conv.weight, case.weights["neck.fpn_convs.3.conv.weight"])


@pytest.fixture
def foreign(monkeypatch):
    """A module of classes that exist while a checkpoint is saved, and whose use afterwards would be noticed."""
    module = types.ModuleType("mmengine_like")
    monkeypatch.setitem(sys.modules, "mmengine_like", module)

    class HistoryBuffer:
        def __init__(self):
            self.log = np.arange(3.0)
            self.statistics = {"min": HistoryBuffer.smallest}

        def smallest(self):
            return self.log.min()

    class ConfigDict(dict):
        pass

    class Tags(list):
        pass

    for cls in (HistoryBuffer, ConfigDict, Tags):
        cls.__module__, cls.__qualname__ = "mmengine_like", cls.__name__
        setattr(module, cls.__name__, cls)
    HistoryBuffer.smallest.__qualname__ = "HistoryBuffer.smallest"
    HistoryBuffer.smallest.__module__ = "mmengine_like"
    return module


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_classes_that_are_not_installed_are_inert(tmp_path, monkeypatch, foreign, protocol, zipped):
    reference = make_model()
    config = foreign.ConfigDict(lr=0.1)
    config["nested"] = foreign.Tags([1, 2])
    content = {
        "meta": {
            "config": config,
            "seen": {1, 2},
            "scalar": np.float64(3),
            "queue": deque([1, 2]),
            config["nested"].__len__(): 1,
        },
        "state_dict": reference.state_dict(),
        "message_hub": {"log_scalars": OrderedDict(loss=foreign.HistoryBuffer())},
    }
    path = tmp_path / "openmmlab.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "mmengine_like")
    model = blank()
    load_weights(model, path, strict=True)
    assert_equal(model, reference)


def test_parameters_and_shared_storage_survive_the_inert_reader(tmp_path, foreign):
    whole = torch.arange(6.0)
    content = {"whole": whole, "half": whole[3:], "parameter": nn.Parameter(whole.double()), "other": foreign.Tags([1])}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    state = read_weights(path)
    assert set(state) == {"whole", "half", "parameter"}
    assert state["half"].tolist() == [3, 4, 5]
    assert state["parameter"].dtype == torch.float64


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def hostile_objects(target):
    touch = f"touch {target}"
    return {
        "os.system": Call(os.system, touch),
        "subprocess": Call(subprocess.call, touch.split()),
        "eval": Call(eval, f"open({str(target)!r}, 'w')"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "numpy": Call(np.save, str(target), 1),
        "torch": Call(torch.save, 1, str(target)),
        "partial": Call(map, Call(functools.partial, torch.save, 1), [str(target)]),
        "rebuild": Call(torch._utils._rebuild_tensor_v2, 1, 2),
    }


@pytest.mark.parametrize("kind", list(hostile_objects("")))
@pytest.mark.parametrize("zipped", [False, True])
def test_hostile_pickles_do_nothing(tmp_path, kind, zipped):
    target = tmp_path / "made.npy"
    path = tmp_path / "hostile.pth"
    torch.save({"state_dict": hostile_objects(target)[kind]}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as info:
        load_weights(blank(), path)
    assert str(info.value).startswith(f"{path}: ")
    assert "\n" not in str(info.value)
    assert not target.exists()
    if kind == "os.system":
        assert "names posix.system" in str(info.value) or os.name == "nt"
    if kind == "eval":
        assert "names __builtin__.eval, which no checkpoint needs" in str(info.value)


def test_a_pickle_cannot_change_the_functions_it_may_call(tmp_path):
    # Written by hand: the global, then BUILD with the state {"evil_": 1}.
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00evil_K\x01sb."
    path = tmp_path / "hostile.pth"
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    head = b""
    for _ in range(3):
        start = buffer.tell()
        pickle.load(buffer)
        head += buffer.getvalue()[start : buffer.tell()]
    path.write_bytes(head + body + pickle.dumps([], 2))
    with pytest.raises(InputError):
        read_weights(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "evil_")


def change_pickle(path, change):
    """Gives a checkpoint another pickle, made of its own."""
    with zipfile.ZipFile(path) as records:
        parts = {record.filename: records.read(record) for record in records.infolist()}
    with zipfile.ZipFile(path, "w") as records:
        for name, content in parts.items():
            records.writestr(name, change(content) if name.endswith("data.pkl") else content)


def compressed(weight, folder):
    """A checkpoint's records, deflated."""
    torch.save({"weight": weight}, folder / "weights.pth")
    packed = io.BytesIO()
    with zipfile.ZipFile(folder / "weights.pth") as records, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for record in records.infolist():
            out.writestr(record.filename, records.read(record))
    return packed.getvalue()


@pytest.mark.parametrize("weight", [torch.zeros(10**6), torch.arange(10**5)])
def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path, weight):
    (tmp_path / "packed.pth").write_bytes(compressed(weight, tmp_path))
    with pytest.raises(InputError, match=rf"packed.pth: would unpack from \d+ to {weight.nbytes // 10**4}\d+ bytes"):
        read_weights(tmp_path / "packed.pth")


ENTRY = b"PK\x01\x02"


def of_a_later_version(archive):
    """What zipfile refuses to read and PyTorch reads."""
    return re.sub(ENTRY + b"....", lambda entry: entry[0][:6] + b"\x63\x00", archive, flags=re.DOTALL)


def with_two_directories(archive):
    """Of which zipfile reads the one before the end, and PyTorch the one that the end names."""
    end = archive.rindex(b"PK\x05\x06")
    start = int.from_bytes(archive[end + 16 : end + 20], "little")
    harmless = re.sub(ENTRY + b".{24}", lambda e: e[0][:24] + b"\x01\0\0\0", archive[start:end], flags=re.DOTALL)
    return archive[:end] + harmless + archive[end:]


def with_a_comment(archive):
    return archive[:-2] + b"\x04\x00more"


@pytest.mark.parametrize("disguise", [of_a_later_version, with_two_directories, with_a_comment])
def test_an_archive_that_only_pytorch_reads_so(tmp_path, disguise):
    path = tmp_path / "packed.pth"
    path.write_bytes(disguise(compressed(torch.zeros(10**6), tmp_path)))
    with pytest.raises(InputError, match=r"packed.pth: is not a checkpoint that can be read: (zip file v|the archive)"):
        read_weights(path)


def test_archives_of_64_bit_numbers(tmp_path, monkeypatch):
    """As those are that have more than 4 GB, or more records than this one is told to count in 16 bits."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.writestr("record", b"content")
    _check_archive(tmp_path / "large.zip")
    whole = bytearray((tmp_path / "large.zip").read_bytes())
    whole[-34:-26] = bytes(8)  # where the end says that its longer form is, which zipfile does not read
    (tmp_path / "moved.zip").write_bytes(whole)
    with pytest.raises(InputError, match=r"the archive's end is not torch\.save's"):
        _check_archive(tmp_path / "moved.zip")


@pytest.mark.parametrize("operations", [b"(K\x01\x90", b"K\x00K\x01s", b"(K\x00K\x01u"], ids=["add", "item", "items"])
def test_a_pickle_cannot_put_items_into_tensors(tmp_path, operations):
    """What a sum or a selection of a tensor takes is as much memory as the tensor says it has."""
    one = torch.ones(1)
    wide = Call(torch._utils._rebuild_tensor_v2, one._typed_storage(), 0, (2**24,), (0,), False, OrderedDict())
    torch.save({"weight": wide}, tmp_path / "weights.pth", pickle_protocol=4)

    def put(content):
        ends = [at for operation, _, at in pickletools.genops(content) if operation.name == "REDUCE"]
        unknown = b"csome\nThing\n)R0"
        return content[:2] + content[11 : ends[-1] + 1] + operations + unknown + content[ends[-1] + 1 :]

    change_pickle(tmp_path / "weights.pth", put)
    with pytest.raises(InputError, match=r"that can be read: it puts items into a Tensor$"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_tensor_that_reaches_beyond_its_storage(tmp_path, known, zipped):
    path = tmp_path / "weights.pth"
    stored = torch.ones(1)
    whole = Call(torch._utils._rebuild_tensor_v2, stored._typed_storage(), 0, (5000,), (1,), False, OrderedDict())
    content = {"weight": whole, "other": 1 if known else Call(print)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"that can be read: .*(not resizable|wrong byte size)"):
        read_weights(path)


def test_a_small_pickle_takes_little_memory(tmp_path):
    """It stores its dictionary, and an object of an unknown class, under a number far beyond any that is in use."""
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    body = b"\x80\x02}r" + (2**23).to_bytes(4, "little") + b"X\x01\x00\x00\x00acsome\nThing\n)Rs."
    change_pickle(path, lambda _: body)
    tracemalloc.start()
    with pytest.raises(InputError, match="holds no named tensors"):
        read_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


class Shadowed:
    """Pickles as an ordered dictionary with attributes in the place of its methods."""

    def __init__(self, **items):
        self.items = items

    def __reduce__(self):
        shadows = dict.fromkeys(("get", "items", "keys", "values", "__getitem__"), 5)
        return OrderedDict, (), shadows, None, iter(self.items.items())


def test_attributes_of_a_dictionary_are_not_taken_for_its_methods(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (
        Shadowed(weight=torch.ones(1)),
        Shadowed(state_dict=Shadowed(weight=torch.ones(1)), meta=Shadowed(dataset_meta=Shadowed(classes=["a"]))),
    ):
        torch.save(content, path)
        assert list(read_weights(path)) == ["weight"]
    assert read_classes(path) == (("a",), None)


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ["a"]}, *({"dataset_meta": {key: ("a",)}} for key in ("classes", "CLASSES"))]
)
def test_class_names_of_all_versions(tmp_path, meta):
    torch.save({"meta": meta, "state_dict": make_model().state_dict()}, tmp_path / "weights.pth")
    assert read_classes(tmp_path / "weights.pth") == (("a",), None)


@pytest.mark.parametrize("meta", [3, [], {"dataset_meta": 3}, {"CLASSES": 3}, {"CLASSES": [1]}])
def test_a_checkpoint_whose_meta_tells_no_classes(tmp_path, meta):
    torch.save({"meta": meta, "state_dict": make_model().state_dict()}, tmp_path / "weights.pth")
    assert read_classes(tmp_path / "weights.pth") == (None, None)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # in the words of PyTorch 2.11
def test_tensors_that_cannot_be_copied(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**make_model().state_dict(), "fc.bias": torch.ones(3).to_sparse()}, path)
    with pytest.raises(InputError, match="cannot be loaded: ") as info:
        load_weights(blank(), path)
    assert "\n" not in str(info.value)


def damaged(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(make_model().state_dict(), whole)
    legacy = tmp_path / "legacy.pth"
    torch.save(make_model().state_dict(), legacy, _use_new_zipfile_serialization=False)
    archive = tmp_path / "old.pth"
    with tarfile.open(archive, "w") as tar:
        tar.add(whole, "storages")
    script = tmp_path / "script.pth"
    script.write_bytes(whole.read_bytes())
    with zipfile.ZipFile(script, "a") as records:
        records.writestr("whole/constants.pkl", b"what marks a TorchScript archive")
    tensors = tmp_path / "whole.safetensors"
    save_file(make_model().state_dict(), tensors)
    return {
        "truncated": ("a.pth", whole.read_bytes()[:-200]),
        "truncated legacy": ("b.pth", legacy.read_bytes()[:-200]),
        "empty": ("c.pth", b""),
        "text": ("d.pth", b"404 Not Found"),
        "tar": ("e.pth", archive.read_bytes()),
        "TorchScript": ("h.pth", script.read_bytes()),
        "truncated safetensors": ("f.safetensors", tensors.read_bytes()[:-20]),
        "text as safetensors": ("g.safetensors", b"404 Not Found"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "truncated",
        "truncated legacy",
        "empty",
        "text",
        "tar",
        "TorchScript",
        "truncated safetensors",
        "text as safetensors",
    ],
)
def test_damaged_files(tmp_path, kind):
    name, content = damaged(tmp_path)[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as info:
        read_weights(path)
    assert str(info.value).startswith(f"{path}: is ")
    assert "\n" not in str(info.value)
    assert ("tar archive" in str(info.value)) == (kind == "tar")


@pytest.mark.parametrize("text", ["model:\n  depth: 18\n", "_base_: x.yaml\n", "\n", "# a comment", "<html>"])
def test_text_in_place_of_a_checkpoint(tmp_path, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as info:
        read_weights(path)
    assert str(info.value) == f"{path}: is not a checkpoint: neither a zip archive nor a pickle, as torch.save writes"


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2), {"state_dict": {}}])
def test_files_without_named_tensors(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds no named tensors"):
        read_weights(path)


@pytest.mark.parametrize("name", ["fc\n.bias", "\x1b[31mfc.bias"])
def test_names_that_a_terminal_would_obey(tmp_path, name):
    state = {"weight": torch.ones(1), name: torch.ones(1)}
    torch.save(state, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    for path in (tmp_path / "weights.pth", tmp_path / "weights.safetensors"):
        with pytest.raises(InputError, match=r"holds a tensor of the name '.*fc.*bias', which no model has") as info:
            read_weights(path)
        assert str(info.value).isprintable()
    torch.save({name: 1}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds no named tensors, bare or") as info:
        read_weights(tmp_path / "weights.pth")
    assert str(info.value).isprintable()
    named = b"\x80\x04\x8c\x02os\x8c\x04\x1b[3m\x93."
    torch.save({}, tmp_path / "weights.pth")
    change_pickle(tmp_path / "weights.pth", lambda _: named)
    with pytest.raises(InputError, match=r"it names os\.\?\[3m, which no checkpoint needs$"):
        read_weights(tmp_path / "weights.pth")


def test_what_a_file_holds_instead_of_named_tensors_is_told(tmp_path):
    torch.save({"ema": make_model().state_dict(), "step": 3}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"bare or under 'state_dict' or 'model', but 'ema', 'step'$"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "source", ["open-mmlab://detectron2/resnet50_caffe", "torchvision://resnet50", "file:///a.pth"]
)
def test_names_that_only_other_toolkits_know(source):
    told = f"^{source}: {source.partition('/')[0]}// is not known here: give a path, or the file's http:// or https://"
    with pytest.raises(InputError, match=told):
        read_weights(source)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="is a folder, not a checkpoint file"):
        load_weights(blank(), tmp_path)
    with pytest.raises(InputError, match=r"absent.pth: no such checkpoint file"):
        load_weights(blank(), tmp_path / "absent.pth")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/remote over HTTP; the cache is another folder."""
    remote = tmp_path / "remote"
    remote.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(remote)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", remote, requests
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_urls_are_downloaded_once(server):
    url, remote, requests = server
    torch.save(make_model().state_dict(), remote / "weights.pth")
    for _ in range(2):
        model = blank()
        load_weights(model, f"{url}/weights.pth", strict=True)
        assert_equal(model, make_model())
    assert requests == ["/weights.pth"]


def test_urls_of_trained_models(server, shapes):
    url, remote, _ = server
    state = build_model(shapes.config(), 2, pretrained=False).state_dict()
    torch.save({"meta": {"CLASSES": ("box", "disc")}, "state_dict": state}, remote / "whole.pth")
    trained = load_trained(shapes.config(), f"{url}/whole.pth")
    assert trained.class_names == ("box", "disc")
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.model.state_dict().items())
    images = [str(shapes.images[0]), "-o", str(remote / "out")]
    for command, more in (("test", []), ("predict", images)):
        result = CliRunner().invoke(app, [command, str(shapes.recipe), f"{url}/absent.pth", *more])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert f"error: {url}/absent.pth: cannot be downloaded" in result.stderr


@pytest.mark.parametrize("name", ["model.pth", "model-20240131.pth"])
def test_urls_of_one_name_are_different_files(server, name):
    url, remote, _ = server
    for number in (1, 2):
        (remote / str(number)).mkdir()
        torch.save({"weight": torch.tensor([number])}, remote / str(number) / name)
    for number in (1, 2, 1):
        assert read_weights(f"{url}/{number}/{name}")["weight"].item() == number


def test_urls_that_cannot_be_had(server, tmp_path):
    url, remote, _ = server
    with pytest.raises(InputError, match=r"absent.pth: cannot be downloaded \(.*404.*\) and is not cached as"):
        load_weights(blank(), f"{url}/absent.pth")
    torch.save(make_model().state_dict(), remote / "weights-0123abcd.pth")
    with pytest.raises(InputError, match="invalid hash") as info:
        load_weights(blank(), f"{url}/weights-0123abcd.pth")
    assert "\n" not in str(info.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    with pytest.raises(InputError, match="names no file"):
        load_weights(blank(), url)
    with pytest.raises(InputError, match=r"http://\[::1: is no URL"):
        load_weights(blank(), "http://[::1")


def test_a_silent_server_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    timeouts = []

    def silent(*_, **__):
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "download_url_to_file", silent)
    with pytest.raises(InputError, match=r"cannot be downloaded \(timed out\)"):
        read_weights("https://example.org/weights.pth")
    assert (timeouts, socket.getdefaulttimeout()) == ([30.0], None)


def test_the_alias_of_torchvision_is_the_first_version():
    assert resolve_pretrained("torchvision://resnet50", "resnet50").endswith("/resnet50-0676ba61.pth")
    with pytest.raises(
        InputError, match=r"'torchvision://resnet-50' is not for resnet50, whose name is '.*//resnet50'"
    ):
        resolve_pretrained("torchvision://resnet-50", "resnet50")
