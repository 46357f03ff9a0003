"""What benchmarks.compare measures, and the process that is one side of it: python benchmarks/jobs.py TREE|hf

The process works in the folder and with the import path of its tree, this one or another: import paths and
names are the same in both. So nothing of a tree is imported at the top of this file, what this project alone
has is used only after asking for it, and all of it is one file: the process finds no second one of ours.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

SMALL = (  # the published mask head fits ResNet-50 and wider alone
    "--backbone {} --hidden_dim 128 --nheads 8 --dim_feedforward 32 --enc_layers 1 --dec_layers 2"
    " --num_queries 12"
)

Run = Callable[[], Any]

# ---- The two kinds of sides --------------------------------------------------------------------------------


class Tree:
    """The model of the tree that this process runs in, and how its engine and post-processors use it.

    Args:
        options: folder of the inputs, device, tiny, masks, batch; of this project also amp and compile.
    """

    def __init__(self, options: SimpleNamespace):
        import models

        self.args = arguments(options)
        self.device = torch.device(options.device)
        self.model: Any
        # The published backbone fetches ImageNet's weights in the main process.
        with mock.patch("models.backbone.is_main_process", lambda: False):
            self.model, self.criterion, self.postprocessors = models.build_model(self.args)
        weights = options.folder / ("segmenter.pth" if options.masks else "detector.pth")
        if not weights.exists():  # those of the side that comes first are both sides'
            if options.masks:
                layers = self.model.detr.query_embed, self.model.mask_head.lay1, self.model.detr.class_embed
                find_something(*layers, lambda: self.model.eval()(self.batch(pictures(options, (480, 640)))))
            torch.save(self.model.state_dict(), weights)
        self.model.load_state_dict(torch.load(weights))
        self.model.to(self.device)
        self.criterion.to(self.device)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for name, p in named if "backbone" not in name]}]
        groups.append({"params": [p for name, p in named if "backbone" in name], "lr": self.args.lr_backbone})
        fused = {"fused": True} if is_ours() else {}  # as each tree's main.py builds it
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4, **fused)  # type: ignore[arg-type]
        self.precision: dict[str, Any] = {}
        if is_ours():
            from models.compilation import compile_model
            from util.amp import Precision

            self.precision = {"precision": Precision(options.amp, self.device)}
            if options.compile:
                compile_model(self.model, self.device)

    def batch(self, images: list[Any]) -> Any:
        from util.misc import nested_tensor_from_tensor_list  # where both trees have it

        return nested_tensor_from_tensor_list(images)

    def infer(self, samples: Any, **choice: Any) -> dict[str, Any]:
        """The outputs for a batch, which goes to the device first."""
        self.model.eval()
        samples = samples.to(self.device)
        with torch.no_grad():
            if not self.precision:
                return self.model(samples)
            with self.precision["precision"].autocast():
                outputs = self.model(samples, **choice)
            return self.precision["precision"].outputs(outputs)

    def step(self, samples: Any, wanted: list[dict[str, Any]]) -> dict[str, float]:
        """An epoch of one step -> its losses."""
        import engine

        loop = self.model, self.criterion, [(samples, wanted)], self.optimizer, self.device, 0, 0.1
        return engine.train_one_epoch(*loop, **self.precision)

    def classes_of_segments(self, samples: Any, size: tuple[int, int]) -> list[int]:
        """From a batch of one picture to a PNG and its segments -> the classes found."""
        import models.segmentation

        if importlib.util.find_spec("panopticapi") is None:  # what the published post-processor takes from it
            vars(models.segmentation).update(
                id2rgb=lambda ids: np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(
                    np.uint8
                ),
                rgb2id=lambda rgb: rgb.astype(np.int32) @ (1, 256, 65536),
            )
        postprocess = self.postprocessors["panoptic"]
        # Of this project's model one asks for the masks of those queries alone that will be drawn.
        choice = {}
        if self.precision and hasattr(postprocess, "select"):
            choice["select"] = self.precision["precision"].outside(postprocess.select)
        found = postprocess(self.infer(samples, **choice), torch.tensor([size]))
        return sorted({segment["category_id"] for segment in found[0]["segments_info"]})


class Transformers:
    """The same of transformers' DETR: random weights, float32, auxiliary losses, a backbone of its own."""

    def __init__(self, options: SimpleNamespace):
        import transformers

        transformers.logging.set_verbosity_error()
        tiny, self.device = options.tiny, torch.device(options.device)
        stages = ["stage1", "stage2", "stage3", "stage4"] if options.masks else ["stage4"]
        backbone: dict[str, Any] = {"out_features": stages}
        if tiny and not options.masks:  # ResNet-18
            backbone |= {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
        config = transformers.DetrConfig(  # type: ignore[call-arg]
            use_timm_backbone=False,
            backbone_config=transformers.ResNetConfig(**backbone),
            num_labels=250 if options.masks else 91,
            auxiliary_loss=True,
            **({"num_queries": 12, "d_model": 128, "encoder_layers": 1, "decoder_layers": 2} if tiny else {}),  # type: ignore[arg-type]
        )
        kind = transformers.DetrForSegmentation if options.masks else transformers.DetrForObjectDetection
        self.model: Any = kind(config).to(self.device)  # type: ignore[arg-type]
        for name, parameter in self.model.named_parameters():
            if "backbone" in name:  # the library freezes all of it; layer2 to layer4 train, as published
                parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
        self.processor = transformers.DetrImageProcessor()
        if options.masks:
            detector = self.model.detr
            layers = detector.model.query_position_embeddings, self.model.mask_head.conv1.conv
            samples = self.batch(pictures(options, (480, 640)))
            find_something(*layers, detector.class_labels_classifier, lambda: self.infer(samples))

    def batch(self, images: list[Any]) -> Any:
        return torch.stack(images)  # all of one size, so that nothing is padded

    def infer(self, samples: Any) -> Any:
        with torch.no_grad():
            outputs = self.model.eval()(samples.to(self.device))
        return {"pred_logits": outputs.logits, "pred_boxes": outputs.pred_boxes, "all": outputs}

    def step(self, samples: Any, wanted: list[dict[str, Any]]) -> None:
        labels = [{**target, "class_labels": target["labels"]} for target in wanted]
        loss = self.model.train()(samples.to(self.device), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        loss.item()  # as the engines do

    def classes_of_segments(self, samples: Any, size: tuple[int, int]) -> list[int]:
        found = self.processor.post_process_panoptic_segmentation(
            self.infer(samples)["all"], 0.85, label_ids_to_fuse=set(range(91, 250)), target_sizes=[size]
        )
        return sorted({segment["label_id"] for segment in found[0]["segments_info"]})


def is_ours() -> bool:
    """Whether this process runs in a tree of this project."""
    return importlib.util.find_spec("util.amp") is not None


def open_side(options: SimpleNamespace) -> Tree | Transformers:
    """The side that this process is."""
    return Transformers(options) if options.side == "hf" else Tree(options)


def arguments(options: SimpleNamespace) -> argparse.Namespace:
    """What main.py's parser makes of the job's flags; backbone_weights is this project's."""
    import main

    words = f"--device {options.device} --coco_path {options.folder} --num_workers 0"
    words += " " + SMALL.format("resnet50" if options.masks else "resnet18") if options.tiny else ""
    words += " --masks --dataset_file coco_panoptic" if options.masks else ""
    args = main.get_args_parser().parse_args(words.split())
    args.backbone_weights = "none"
    return args


def find_something(query_embed: Any, mask_layer: Any, head: Any, infer: Run) -> None:
    """Change a random segmenter in place so that it finds segments, as a trained one does.

    With random weights it would find none, and all queries would draw one mask. So queries are spread, their
    attention is made to count in the mask head's first layer, and the classification head is solved for: a
    sixth of the queries gets a class on the picture that `infer` shows the model, one in three of them stuff.
    """
    seen: list[Any] = []
    with torch.no_grad():
        query_embed.weight.mul_(10 / query_embed.weight.std())
        heads = mask_layer.weight.shape[1] - query_embed.weight.shape[1]
        mask_layer.weight[:, -heads:] *= 10_000
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        infer()
        hook.remove()
        queries, width = seen[-1].shape[-2:]
        features = seen[-1].reshape(-1, width)[-queries:].double()  # [Q, D], the last layer's
        logits = features.new_zeros(queries, head.out_features)
        logits[:, -1] = 12  # no object
        for query in range(queries // 6):
            logits[query, -1] = 0
            logits[query, 100 + query % 2 if query % 3 == 2 else query + 1] = 12
        solved = torch.linalg.lstsq(features.cpu(), logits.cpu(), driver="gelsd").solution
        head.weight.copy_(solved.t())
        head.bias.zero_()


def pictures(options: SimpleNamespace, size: tuple[int, int], count: int = 1) -> list[Any]:
    """Normalised noise [3, height, width], as data sets give pictures."""
    size = (64, 96) if options.tiny else size
    return list(torch.randn(options.batch or count, 3, *size, generator=torch.Generator().manual_seed(0)))


def targets(options: SimpleNamespace, images: list[Any], objects: int = 7) -> list[dict[str, Any]]:
    """For each picture labels [n], boxes [n, 4] and, where masks train, rectangles [n, height, width]."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for image in images:
        sides = torch.rand(objects, 2, generator=generator) * 0.4 + 0.1
        centres = sides / 2 + torch.rand(objects, 2, generator=generator) * (1 - sides)
        labels = torch.randint(1, 91, (objects,), generator=generator)
        target = {"labels": labels, "boxes": torch.cat([centres, sides], 1)}
        if options.masks:
            y, x = (torch.arange(length) / length for length in image.shape[-2:])
            columns = (x - centres[:, :1]).abs() < sides[:, :1] / 2  # [n, width]
            rows = (y - centres[:, 1:]).abs() < sides[:, 1:] / 2  # [n, height]
            target["masks"] = rows[:, :, None] & columns[:, None]
        found.append({name: value.to(options.device) for name, value in target.items()})
    return found


# ---- The jobs: each prepares, and gives what is timed; what that returns is compared -----------------------


def show_help(_: SimpleNamespace) -> Run:
    """`main.py --help`, in a process of its own."""
    command = [sys.executable, "main.py", "--help"]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL).returncode


def read_annotations(options: SimpleNamespace) -> Run:
    """build_dataset: a file of annotations is read and checked."""
    from datasets import build_dataset

    return lambda: len(build_dataset("val", arguments(options)))


def load_items(options: SimpleNamespace) -> Run:
    """dataset[i] of the training set: read, augment, make targets."""
    from datasets import build_dataset

    args = arguments(options)
    args.dataset_file = "coco"
    dataset = build_dataset("train", args)

    def run() -> Iterator[Any]:
        random.seed(0)
        torch.manual_seed(0)
        for i in range(4 if options.tiny else 24):
            image, target = dataset[i]
            pixels = np.count_nonzero(target["masks"].numpy()) if "masks" in target else 0
            yield image.abs().mean(), target["boxes"], target["labels"], pixels

    return lambda: list(run())


def infer(options: SimpleNamespace) -> Run:
    """A forward pass without gradients."""
    side = open_side(options)
    samples = side.batch(pictures(options, (800, 1066)))
    return lambda: [side.infer(samples)[name] for name in ("pred_logits", "pred_boxes")]


def train(options: SimpleNamespace) -> Run:
    """A step of training: forward, losses, backward, clipping, optimizer."""
    side = open_side(options)
    size = (800, 1066) if options.batch else (480, 640)
    images = pictures(options, size, count=1 if options.masks else 2)
    samples, wanted = side.batch(images), targets(options, images)

    def run() -> None:  # dropout differs, so there is nothing to compare
        side.step(samples, wanted)

    return run


def match_and_compare(options: SimpleNamespace) -> Run:
    """Matching, losses and their gradient: 6 layers, 16 images, 20 objects each."""
    side, count = Tree(options), 2 if options.tiny else 16
    wanted = targets(options, [torch.empty(3, 8, 8)] * count, objects=20)
    generator = torch.Generator().manual_seed(2)
    layers = []
    for _ in range(6):
        logits = torch.randn(count, 100, 92, generator=generator).to(options.device)
        boxes = torch.rand(count, 100, 4, generator=generator).to(options.device) * 0.4 + 0.1
        layers.append({"pred_logits": logits.requires_grad_(), "pred_boxes": boxes.requires_grad_()})

    def run() -> float:
        losses = side.criterion({**layers[-1], "aux_outputs": layers[:-1]}, wanted)
        weights = side.criterion.weight_dict
        loss = sum(losses[name] * weights[name] for name in losses if name in weights)
        loss.backward()
        return loss.item()

    return run


def draw_segments(options: SimpleNamespace) -> Run:
    """Panoptic inference: forward, masks, and the merge into segments."""
    side = open_side(options)
    images = pictures(options, (480, 640))
    samples = side.batch(images)
    return lambda: side.classes_of_segments(samples, tuple(images[0].shape[-2:]))


def evaluate_boxes(options: SimpleNamespace) -> Run:
    """100 boxes for each image, until the twelve figures are printed."""
    from pycocotools.coco import COCO

    from datasets.coco_eval import CocoEvaluator

    coco, draw = COCO(str(options.folder / "annotations/instances_val2017.json")), np.random.default_rng(3)
    predictions = {}
    for image in coco.getImgIds():
        boxes = draw.uniform(0, 400, (100, 4))  # left, top, width, height
        labels, scores = draw.choice(coco.getCatIds(), 100), draw.uniform(0, 0.6, 100)
        for place, truth in enumerate(coco.imgToAnns[image]):  # these lie near objects, and are more certain
            boxes[place] = np.array(truth["bbox"]) * draw.uniform(0.85, 1.15, 4)
            labels[place], scores[place] = truth["category_id"], draw.uniform(0.3, 1)
        boxes[:, 2:] += boxes[:, :2]
        found = {"labels": labels, "scores": scores.astype("f4"), "boxes": boxes.astype("f4")}
        predictions[image] = {name: torch.from_numpy(value) for name, value in found.items()}

    def run() -> list[float]:
        evaluator = CocoEvaluator(coco, ("bbox",))
        for image, found in predictions.items():
            evaluator.update({image: found})
        evaluator.synchronize_between_processes()
        evaluator.accumulate()
        evaluator.summarize()
        return evaluator.coco_eval["bbox"].stats.tolist()

    return run


def evaluate_segments(options: SimpleNamespace) -> Run:
    """PQ of 48 images, on all cores. The published tree needs panopticapi for it."""
    from datasets.panoptic_eval import PanopticEvaluator

    if not is_ours() and importlib.util.find_spec("panopticapi") is None:
        raise ImportError("the published code needs panopticapi for this")
    root = options.folder / "panoptic"
    entries = json.loads((root / "found.json").read_text())["annotations"]
    found = [{**entry, "png_string": (root / "found" / entry["file_name"]).read_bytes()} for entry in entries]

    def run() -> list[float]:
        with tempfile.TemporaryDirectory() as out:
            evaluator = PanopticEvaluator(str(root / "truth.json"), str(root / "truth"), out)
            evaluator.update([dict(entry) for entry in found])
            evaluator.synchronize_between_processes()
            figures: Any = evaluator.summarize()
        return [figures[group]["pq"] for group in ("All", "Things", "Stuff")]

    return run


class Job(NamedTuple):
    """`target`: the least ratio to the published tree, on a CPU in float32; `memory`: that of the peak."""

    title: str
    prepare: Callable[[SimpleNamespace], Run]
    target: float | None = None
    masks: bool = False
    memory: float | None = None
    hf: bool = False  # transformers has it too
    threads: int | None = None


JOBS = {
    "help": Job("main.py --help", show_help, 6),
    "annotations": Job("build_dataset, 2,000 images", read_annotations),
    "items": Job("dataset[i], 24 of 640x480", load_items, 1.8, threads=1),
    "items-masks": Job("dataset[i] with masks", load_items, 2.2, masks=True, threads=1),
    "inference": Job("inference, 800x1066", infer, 1.7, hf=True),
    "criterion": Job("criterion, 6 layers x 16 images", match_and_compare, 4),
    "step": Job("training step, 2 x 480x640", train, 1.15, memory=1.0, hf=True),
    "panoptic": Job("panoptic inference, 480x640", draw_segments, 2.5, masks=True, hf=True),
    "step-masks": Job("training step with masks, 480x640", train, 2, masks=True, memory=2, hf=True),
    "coco": Job("COCO evaluation, 2,000 images", evaluate_boxes, 7),
    "pq": Job("panoptic quality, 48 images", evaluate_segments),
}


# ---- A process that is one side ----------------------------------------------------------------------------


def serve(side: str) -> None:
    """Answer lines of JSON: {"job": …, options} prepares a job and runs it twice, {"calls": n} times it."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what jobs print
    run: Run = int
    options = SimpleNamespace(device="cpu")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "job" in request:
                run = int  # lets go of the job before
                gc.collect()
                options = SimpleNamespace(**{**request, "folder": Path(request["folder"]), "side": side})
                if options.tf32 is not None:
                    set_tf32(options.tf32)
                run = JOBS[options.job].prepare(options)
                answer = first_runs(run, options.device)
            else:
                answer = {"seconds": seconds(run, options.device, request["calls"])}
        except Exception as error:  # this side's failure; the other side and the other jobs go on
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=answers)


def set_tf32(allowed: bool) -> None:
    """In matrix products and convolutions of a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def first_runs(run: Run, device: str) -> dict[str, Any]:
    """The first result, the second run's seconds, and the bytes by which memory grew at its peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        before = resident("VmRSS")
    result = numbers(run())
    second = seconds(run, device, 1)  # the first step of an optimizer makes its state
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return {"result": result, "seconds": second, "memory": peak - before}


def seconds(run: Run, device: str, calls: int) -> float:
    """Of one call, on average."""
    wait = torch.cuda.synchronize if device == "cuda" else int
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - start) / calls


def resident(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def numbers(result: Any) -> list[float]:
    """A result as a list of numbers; of a tensor the mean and the mean magnitude."""
    if isinstance(result, (list, tuple)):
        return [number for one in result for number in numbers(one)]
    if isinstance(result, torch.Tensor):
        values = result.detach().double()
        return [values.mean().item(), values.abs().mean().item()] if values.numel() else []
    return [] if result is None else [float(result)]


if __name__ == "__main__":
    sys.path[0] = "" if sys.argv[1] == "hf" else os.getcwd()  # not this file's folder
    serve(sys.argv[1])
