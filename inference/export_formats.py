"""Writing a model to a file that runs without this project, and running it: ONNX, TorchScript, torch.export.

Every format takes batches of any number and size of images, and stores what is known about the model with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.exportable import AXES, Exportable
from util.errors import UserError

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
METADATA_FILE = "metadata.json"
OPSET = 18  # the ONNX operator set that torch's exporter is written in; later ones are converted to
_FATAL = 4  # of onnxruntime's levels of logging


class Format(ABC):
    """One kind of file."""

    name: str  # what `--format` calls it
    packages: tuple[str, ...] = ()  # what it needs besides the project's own requirements
    suffix: str = ""  # how the names of its files must end
    optional_mask = False  # one file runs with a mask and without

    def check_packages(self) -> None:
        """Raise a UserError if a package is missing."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise UserError(f"--format {self.name} needs packages: pip install {' '.join(missing)}")

    @abstractmethod
    def write(self, model: Exportable, example: Inputs, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a model.

        Args:
            example: inputs to trace it with. The file takes the inputs that are in it, with other lengths of
                the axes in AXES.
            path: the file; an older one is replaced.
            metadata: plain values by name.

        Raises:
            UserError: the model holds something that the format cannot express.
            OSError: the file cannot be written.
        """

    @abstractmethod
    def load(self, path: Path) -> Callable[[Inputs], Outputs]:
        """A file, ready to run on the CPU."""

    @abstractmethod
    def metadata(self, path: Path) -> dict[str, Any]:
        """What was written with the model."""


class Onnx(Format):
    """ONNX, through torch.export and onnxscript. Metadata are in `metadata_props`, each value as JSON."""

    name = "onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def __init__(self, opset: int = OPSET):
        self.opset = opset

    def write(self, model: Exportable, example: Inputs, path: Path, metadata: Mapping[str, Any]) -> None:
        from onnxscript import optimizer

        traced = _traced(model, example)
        with _quietly():  # it warns that axes of one name are taken for one axis, as is meant
            try:
                program = torch.onnx.export(
                    traced,
                    dynamo=True,
                    dynamic_shapes={name: AXES[name] for name in example},
                    output_names=model.output_names,
                    opset_version=self.opset,
                    verbose=False,
                )
            except RuntimeError as error:  # torch.onnx.errors' are, too
                raise UserError(
                    f"--format onnx: this model cannot be written: {first_line(error)}"
                ) from error
            assert program is not None  # None without dynamo
            # Norms folded into convolutions and slices of projections become plain weights, whatever their
            # size: some runtimes want them, and all of them start faster.
            no_limit = sum(parameter.numel() for parameter in model.state_dict().values()) + 1
            optimizer.optimize(program.model, input_size_limit=no_limit, output_size_limit=no_limit)
        reached = program.model.opset_imports[""]
        if reached != self.opset:
            raise UserError(
                f"--opset {self.opset}: torch's exporter gives {reached}; leave --opset out or pass that"
            )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # modules' names, and how each was decomposed: half of a small file
        program.model.producer_name = "DETR"
        program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
        program.save(path, external_data=False)

    def load(self, path: Path) -> Callable[[Inputs], Outputs]:
        session = self._session(path)
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Inputs) -> Outputs:
            arrays = session.run(names, {name: value.numpy() for name, value in inputs.items()})
            return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

        return run

    def metadata(self, path: Path) -> dict[str, Any]:
        properties = self._session(path).get_modelmeta().custom_metadata_map
        return {name: json.loads(value) for name, value in properties.items()}

    @staticmethod
    def _session(path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _FATAL  # errors are raised as well
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class TorchExport(Format):
    """torch.export's archive (.pt2): `torch.export.load(file).module()(images, ...)`."""

    name = "torch_export"
    suffix = ".pt2"

    def write(self, model: Exportable, example: Inputs, path: Path, metadata: Mapping[str, Any]) -> None:
        program = _traced(model, example)
        program.example_inputs = None  # they would be in the file
        # It warns where weights share memory and are not on the CPU, but they are.
        with _quietly(), _in_memory(path) as buffer:
            torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})

    def load(self, path: Path) -> Callable[[Inputs], Outputs]:
        module = torch.export.load(path).module()
        return lambda inputs: module(*_arguments(inputs)[0], **_arguments(inputs)[1])

    def metadata(self, path: Path) -> dict[str, Any]:
        files = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[METADATA_FILE])


class TorchScript(Format):
    """torch.jit's archive: `torch.jit.load(file)(images, mask=None, sizes=None)`."""

    name = "torchscript"
    optional_mask = True

    def write(self, model: Exportable, example: Inputs, path: Path, metadata: Mapping[str, Any]) -> None:
        try:
            with _quietly(), _in_memory(path) as buffer:  # --help says what the notice would
                files = {METADATA_FILE: json.dumps(metadata)}
                torch.jit.save(torch.jit.script(model), buffer, _extra_files=files)
        except RuntimeError as error:
            raise UserError(
                f"--format torchscript: this model cannot be scripted: {first_line(error)}"
            ) from error

    def load(self, path: Path) -> Callable[[Inputs], Outputs]:
        with _quietly():  # --help says what the notice would
            module = torch.jit.load(str(path), map_location="cpu")
        return lambda inputs: module(**inputs)

    def metadata(self, path: Path) -> dict[str, Any]:
        files = {METADATA_FILE: ""}
        with _quietly():  # --help says what the notice would
            torch.jit.load(str(path), _extra_files=files)
        return json.loads(files[METADATA_FILE])


def _traced(model: Exportable, example: Inputs) -> torch.export.ExportedProgram:
    """The model's graph for batches of any number and size of images."""
    dynamic = {name: dict.fromkeys(AXES[name], torch.export.Dim.DYNAMIC) for name in example}
    arguments, keywords = _arguments(example)
    try:
        with torch.no_grad():
            program = torch.export.export(model, arguments, keywords, dynamic_shapes=dynamic, strict=False)
    except (RuntimeError, ValueError, AssertionError) as error:  # torch's own UserError is a RuntimeError
        raise UserError(f"torch.export cannot trace this model: {first_line(error)}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # with the paths of this machine
    return program


def _arguments(inputs: Inputs) -> tuple[tuple[Tensor], dict[str, Tensor]]:
    """Inputs as they are handed to forward, the images alone by place."""
    rest = {name: value for name, value in inputs.items() if name != "images"}
    return (inputs["images"],), rest


def first_line(error: Exception) -> str:
    """What an exception says first; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _in_memory(path: Path) -> Iterator[io.BytesIO]:
    """Collect what a file is to hold, then write it: torch's own writer ends the process on a full disk."""
    buffer = io.BytesIO()
    yield buffer
    path.write_bytes(buffer.getbuffer())


FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (Onnx, TorchScript, TorchExport)}
"""By the names of `--format`."""
