"""OpenVINO: int8 arithmetic of quantised students, the pair of files, and the graph that both runtimes share."""

import os
import sys

import numpy as np
import pytest
import torch

from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError, require_package
from crossdistill.export import onnx, openvino
from crossdistill.export.formats import export_student
from crossdistill.export.simplify import simplify
from crossdistill.quantization.calibrate import calibrate
from crossdistill.quantization.quantize import noise_clips, quantize

onnx_library = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
library = pytest.importorskip("openvino")
helper = onnx_library.helper


def make_encoder(name="flow_tiny3d_8", bits=None, **view):
    """An encoder with BatchNorm statistics and ranges of noise."""
    torch.manual_seed(0)
    encoder = create_encoder(name, **{"num_frames": 8, "size_px": 32, **view})
    clips = noise_clips(encoder, 8)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(clips)
    encoder.eval()
    if bits is not None:
        pytest.importorskip("brevitas")
        calibrate(quantize(encoder, bits).eval(), [clips])
    return encoder


@pytest.mark.parametrize(
    ("name", "bits", "view", "num_convolutions"),
    [
        ("flow_tiny3d_8", "w4a8", {}, 4),
        ("rgb_r3d10", "w8a8", {}, 12),
        ("image_resnet18", "w8a8", {"num_frames": 1, "size_px": 32}, 20),
    ],
)
def test_quantised_network__runs_on_integers_throughout(tmp_path, name, bits, view, num_convolutions):
    encoder = make_encoder(name, bits, **view)
    agreement = export_student(encoder, tmp_path / "a.xml", noise_clips(encoder, 4), to="openvino")
    convolutions = {name: number for name, number in agreement.operators.items() if "Convolution" in name}
    assert convolutions == {"Convolution u8": num_convolutions}
    assert agreement.min_cosine > 0.995
    # An ONNX file in OpenVINO is the same network.
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 4), to="onnx")
    clips = noise_clips(encoder, 3)
    pair, file = (openvino.open_model(tmp_path / f"a.{suffix}")[0](clips) for suffix in ("xml", "onnx"))
    torch.testing.assert_close(pair, file, atol=1e-6, rtol=1e-6)


def test_pair__weights_of_another_export_are_refused(tmp_path):
    encoder = make_encoder()
    path = tmp_path / "a.xml"
    export_student(encoder, path, noise_clips(encoder, 2), to="openvino")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    openvino.open_model(path)
    weights = tmp_path / "a.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin does not hold the weights of a\.xml: export the student again"):
        openvino.open_model(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"there is no OpenVINO file .*a\.bin: a graph .* belong together"):
        openvino.open_model(path)


def test_pair__export_that_is_refused_keeps_the_former_one(tmp_path):
    encoder, path = make_encoder(), tmp_path / "a.xml"
    export_student(encoder, path, noise_clips(encoder, 2), to="openvino")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match="nothing was written"):
        export_student(make_encoder(bits="w2a2"), path, noise_clips(encoder, 2), to="openvino", min_cosine=1.0)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_file__openvino_without_this_package_reads_inputs_outputs_and_metadata(tmp_path):
    encoder = make_encoder()
    encoder.classifier = Classifier(torch.randn(3, encoder.embed_dim), torch.randn(3))
    export_student(encoder, tmp_path / "a.xml", noise_clips(encoder, 2), to="openvino", classes=("a", "b", "c"))
    model = library.Core().read_model(tmp_path / "a.xml")  # finds a.bin by itself
    assert [port.get_any_name() for port in model.inputs] == ["clips"]
    assert [port.get_any_name() for port in model.outputs] == ["embeddings", "logits"]
    assert model.inputs[0].partial_shape[0].is_dynamic
    assert '"classes": ["a", "b", "c"]' in model.get_rt_info("crossdistill").value


def test_file__without_metadata_or_damaged_is_one_sentence(tmp_path):
    encoder = make_encoder()
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2), to="onnx")
    proto = onnx_library.load(tmp_path / "a.onnx")
    del proto.metadata_props[:]
    onnx_library.save(proto, tmp_path / "b.onnx")
    library.save_model(library.Core().read_model(tmp_path / "b.onnx"), tmp_path / "b.xml")
    for name in ("b.onnx", "b.xml"):
        with pytest.raises(UserError, match=r"no crossdistill metadata, so its preprocessing is unknown"):
            openvino.open_model(tmp_path / name)
    for name in ("c.xml", "c.onnx"):
        (tmp_path / name).write_bytes(b"nonsense" * 50)
        (tmp_path / "c.bin").write_bytes(b"")
        with pytest.raises(UserError, match=r"OpenVINO .* cannot read .*export the student again"):
            openvino.open_model(tmp_path / name)


def test_file__operator_that_openvino_lacks_is_named(tmp_path):
    node = helper.make_node("Smell", ["clips"], ["embeddings"], domain="made.up")
    tensors = [
        helper.make_tensor_value_info(name, onnx_library.TensorProto.FLOAT, [1, 2]) for name in ("clips", "embeddings")
    ]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("made.up", 1)]
    onnx_library.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"OpenVINO .* cannot read .*Smell"):
        openvino.open_model(tmp_path / "a.onnx")


def test_package__missing_or_too_old_says_how_to_install(monkeypatch):
    monkeypatch.setattr(library, "__version__", "2023.1.0-12-abc")
    with pytest.raises(
        UserError, match=r"needs openvino 2025\.0 or newer, and 2023\.1\.0-12-abc is installed: run pip"
    ):
        openvino.require()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"needs openvino, which cannot be imported.*crossdistill\[openvino\]"):
        openvino.require()


@pytest.mark.parametrize(("least", "is_enough"), [("1.9", True), ("1.10.0", True), ("1.10.1", False), ("2", False)])
def test_require_package__compares_numbers_and_not_text(monkeypatch, least, is_enough):
    monkeypatch.setattr(library, "__version__", "1.10.0")
    if is_enough:
        assert require_package("openvino", target="x", extra="x", least=least) is library
    else:
        with pytest.raises(UserError, match="or newer"):
            require_package("openvino", target="x", extra="x", least=least)


def test_simplify__values_stay_where_only_clips_of_constants_are_folded(tmp_path):
    """Roundings before sums stay; those before an activation function alone go."""
    encoder = make_encoder("rgb_r3d10", "w4a8")
    path = tmp_path / "a.onnx"
    export_student(encoder, path, noise_clips(encoder, 2), to="onnx")
    model = onnx_library.load(path)
    counts = [sum(node.op_type == name for node in model.graph.node) for name in ("Clip", "QuantizeLinear")]
    simplify(model)
    kept = [sum(node.op_type == name for node in model.graph.node) for name in ("Clip", "QuantizeLinear")]
    assert counts == [12, 24] and kept == [0, 20]  # 4 of 12 convolutions are followed by an activation function alone
    onnx_library.checker.check_model(model, full_check=True)


def test_simplify__double_rounding_becomes_the_second_rounding(tmp_path):
    """A graph by hand against arithmetic by hand: Conv (times 1), rounding in steps of 0.5, Relu, in steps of 0.2."""

    def constant(name, values):
        return onnx_library.numpy_helper.from_array(np.array(values), name)

    def rounding(source, out, scale, zero):
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{out}_q"]),
            helper.make_node("DequantizeLinear", [f"{out}_q", scale, zero], [out]),
        ]

    nodes = [
        helper.make_node("Conv", ["clips", "weight"], ["sum"]),
        *rounding("sum", "first", "s1", "z1"),
        helper.make_node("Relu", ["first"], ["active"]),
        *rounding("active", "embeddings", "s2", "z2"),
    ]
    weights = [constant("weight", np.ones((1, 1, 1), np.float32)), constant("s1", np.float32(0.5))]
    weights += [constant("z1", np.uint8(128)), constant("s2", np.float32(0.2)), constant("z2", np.uint8(0))]
    shape = [1, 1, 4]
    tensors = [
        helper.make_tensor_value_info(name, onnx_library.TensorProto.FLOAT, shape) for name in ("clips", "embeddings")
    ]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = torch.tensor([[[-1.0, 0.3, 0.7, 2.0]]])
    found = []
    for name in ("a", "b"):
        onnx_library.save(model, tmp_path / f"{name}.onnx")
        session = onnx.open_session(tmp_path / f"{name}.onnx")
        found.append(onnx.run_session(session, values)["embeddings"].flatten().tolist())
        simplify(model)
    assert found[0] == pytest.approx([0.0, 0.4, 0.4, 2.0])  # 0.3 and 0.7 become 0.5, which becomes 0.4
    assert found[1] == pytest.approx([0.0, 0.4, 0.8, 2.0])  # 0.3 / 0.2 is 1.5, whose nearest even integer is 2
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "QuantizeLinear", "DequantizeLinear"]


def test_tensorrt__builds_an_engine_from_the_file(tmp_path):
    """The documented path; it runs only where tensorrt and a GPU are."""
    tensorrt = pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    encoder = make_encoder("rgb_r3d10")
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2), to="onnx")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse_from_file(os.fspath(tmp_path / "a.onnx")), parser.get_error(0).desc()
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = (3, 8, 32, 32)
    profile.set_shape("clips", (1, *shape), (4, *shape), (8, *shape))
    settings.add_optimization_profile(profile)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, settings))
    context, clips = engine.create_execution_context(), noise_clips(encoder, 4).cuda()
    found = torch.empty(4, encoder.embed_dim, device="cuda")
    context.set_input_shape("clips", tuple(clips.shape))
    context.set_tensor_address("clips", clips.data_ptr())
    context.set_tensor_address("embeddings", found.data_ptr())
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    with torch.no_grad():
        expected = encoder(clips.cpu())
    assert torch.nn.functional.cosine_similarity(found.cpu(), expected).min() > 0.999
