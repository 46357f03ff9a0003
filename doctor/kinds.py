"""The kinds of findings of `doctor.check`: how bad each is, why it matters to DETR, and what to do."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Level(IntEnum):
    """How bad a finding is; lower is worse."""

    UNUSABLE = 0  # the file cannot be read as a COCO file
    ERROR = 1  # training would stop, or learn something wrong
    WARNING = 2  # a fault that training survives: what is faulty is dropped, clamped or ignored
    NOTE = 3  # worth knowing; no fault


class Kind(NamedTuple):
    """What is said of every finding of a kind."""

    level: Level
    title: str
    why: str
    advice: str


_U, _E, _W, _N = Level
_STOPS = "Training refuses the file."
_FIX = "--fix "
_POLYGON = _FIX + "drops the polygon; with --masks it drops an object that is left without any."
_MASKS = "It matters with --masks only, which refuses it."
_WHERE = "Training stops where it is first needed."
_GONE = "Training drops the object, and calls what is there background."
_JSON = "Export the file anew, or correct the place that is named."

# What training with masks refuses: errors, however few, where masks are to be trained.
NEEDED_BY_MASKS = {
    "segmentation_malformed", "polygon_points", "polygon_not_finite", "polygon_far", "rle_misfit",
    "no_segmentation", "no_masks", "image_size_missing",
}  # fmt: skip

# Order within a level is the order of the report.
KINDS: dict[str, Kind] = {
    # ---- the file
    "missing_file": Kind(_U, "no annotation file", _STOPS, "Check the path."),
    "unreadable_json": Kind(_U, "no valid JSON", _STOPS, _JSON),
    "not_coco": Kind(_U, "not a COCO file", _STOPS, "A COCO file is one object with the lists images, "
                     "annotations and categories. Other formats: python -m doctor.convert."),
    "empty_section": Kind(_U, "an empty section", "Without objects every loss of boxes is 0 and AP is -1.",
                          "Check what was exported: each object is an entry of annotations, with an image_id "
                          "that stands among the images."),
    "broken_record": Kind(_E, "an entry that is no JSON object", _STOPS, _FIX + "leaves it out."),
    # ---- ids
    "id_type": Kind(_E, "an id that is missing or no integer",
                    "'1' and 1 are different ids: objects would silently lose their picture or class.",
                    _FIX + "makes all ids integers, everywhere alike."),
    "duplicate_image_id": Kind(_E, "an image id that occurs twice",
                               "The objects of several pictures become those of one.",
                               _FIX + "merges entries of one picture and drops those of several."),
    "duplicate_category_id": Kind(_E, "a category id that occurs twice", "Two classes become one.",
                                  "Give every class an id of its own. " + _FIX + "keeps the first."),
    "duplicate_annotation_id": Kind(_E, "an annotation id that occurs twice",
                                    "The evaluation keeps one object for each id and loses the others.",
                                    _FIX + "gives the later ones new ids."),
    "dangling_image_id": Kind(_E, "an object of an image that is not listed", "It is never trained on.",
                              "List the image. " + _FIX + "drops the object."),
    "dangling_category_id": Kind(_E, "an object of a category that is not listed",
                                 "Its class has no name, and may lie beyond the model's classes.",
                                 "List the category, with an id below --num_classes. " + _FIX
                                 + "drops the object."),
    "category_range": Kind(_E, "a category id that the model has no class for",
                           "DETR uses the id itself as the index of the class: such a label ends in a "
                           "device-side assert.",
                           "Pass --num_classes (highest id + 1), or leave it out to have it inferred. "
                           + _FIX + "moves the class to a free id, or drops its objects."),
    "categories_differ": Kind(_E, "train and val name one category id differently",
                              "What is learned as one class is scored as another.",
                              "Export both together. " + _FIX + "gives val the ids of train, by name."),
    # ---- boxes
    "bbox_missing": Kind(_E, "an object without bbox", _STOPS,
                         _FIX + "takes the box of its polygons, or drops the object."),
    "bbox_malformed": Kind(_E, "a bbox that is no list of four numbers", _STOPS,
                           _FIX + "reads numbers in quotes, takes the box of polygons, or drops the object."),
    "bbox_not_finite": Kind(_E, "a bbox with NaN or infinity", "One such box turns the whole model into NaN.",
                            _FIX + "takes the box of its polygons, or drops the object."),
    "looks_xyxy": Kind(_E, "boxes look like x1 y1 x2 y2, not like x y width height",
                       "Every box is too large: the model learns wrong boxes, without any error.",
                       "Export as x y width height. " + _FIX + "converts all boxes of the file."),
    "looks_centred": Kind(_E, "boxes look like centre x, centre y, width, height",
                          "COCO's x y is the top left corner: every box is shifted by half its size.",
                          _FIX + "converts all boxes of the file."),
    "looks_normalised": Kind(_E, "boxes look normalised to 0…1",
                             "COCO's boxes are in pixels: these shrink to nothing.",
                             _FIX + "multiplies all boxes of the file with the size of their image."),
    "no_masks": Kind(_E, "boxes only: no object of the file has a mask",
                     "Training with --masks needs the mask of every object.",
                     "--masks cannot be trained on these data: leave it out, or add polygons."),
    # ---- what else training needs
    "area_malformed": Kind(_E, "an area that is missing or no number", _STOPS,
                           _FIX + "computes it from mask or box."),
    "iscrowd_malformed": Kind(_E, "an iscrowd that is neither 0 nor 1",
                              "Crowds are not trained on; nobody can tell whether this is one.",
                              _FIX + "makes it 1 for true, else 0."),
    "file_name_missing": Kind(_E, "an image without file_name", _STOPS, _FIX + "drops it and its objects."),
    "image_missing": Kind(_E, "a picture that is not there", _WHERE,
                          _FIX + "uses a file whose name differs in its ending only; otherwise it drops "
                          "image and objects."),
    "image_unreadable": Kind(_E, "a file that is no picture", _WHERE, _FIX + "drops image and objects."),
    "image_truncated": Kind(_E, "a picture whose end is missing", _WHERE,
                            "Copy it again. " + _FIX + "drops image and objects."),
    "image_size": Kind(_E, "a picture of another size than its entry says",
                       "Boxes were probably drawn on a picture of another size and lie wrong.",
                       _FIX + "takes the picture's size; it scales the objects where its shape is the same."),
    "exif_other_frame": Kind(_E, "boxes that leave the frame which their entry states, and fit the picture "
                             "turned by its EXIF tag", "Boxes lie elsewhere.",
                             _FIX + "states the other frame: it swaps width and height."),
    "image_too_large": Kind(_E, "a picture of more pixels than Pillow reads", "Training stops at it.",
                            "Scale it down, and its boxes. " + _FIX + "drops image and objects."),
    # ---- panoptic
    "isthing_missing": Kind(_E, "a category without isthing", "Things and stuff are scored apart.",
                            "Add isthing 1 or 0. " + _FIX + "calls it a thing."),
    "segments_malformed": Kind(_E, "segments_info that is no list of segments", _STOPS,
                               _FIX + "leaves out what is no segment."),
    "segment_id": Kind(_E, "a segment id that is no integer from 0 to 2^24 - 1, or occurs twice in an image",
                       "The id is the colour in the PNG: R + 256 G + 65536 B.", _FIX + "drops the segment."),
    "image_without_segments": Kind(_E, "an image without an entry in annotations", _STOPS,
                                   _FIX + "drops the image."),
    "png_unreadable": Kind(_E, "a panoptic PNG that is missing, damaged or not in RGB", _STOPS,
                           _FIX + "drops image and segments."),
    "png_size": Kind(_E, "a panoptic PNG of another size than its image", _STOPS,
                     _FIX + "drops image and segments."),
    "png_not_in_json": Kind(_E, "a segment in the PNG that the JSON lacks", _STOPS,
                            _FIX + "paints its pixels 0, which is no segment."),
    "json_not_in_png": Kind(_E, "a segment in the JSON that the PNG lacks", _STOPS,
                            _FIX + "drops the segment."),
    # ---- faults that training survives
    "bbox_no_size": Kind(_W, "a box without width or height", _GONE,
                         _FIX + "takes the box of its mask, or drops the object."),
    "bbox_negative": Kind(_W, "a box of negative width or height", _GONE, _FIX + "swaps the corners."),
    "bbox_wrong_by_mask": Kind(_W, "a box that is wrong, as its mask shows",
                               "They lie apart, and the box leaves the image, has a side under a pixel, or "
                               "the stored area is that of the mask.", _FIX + "takes the box of the mask."),
    "bbox_outside": Kind(_W, "a box outside of its image", "Training drops the object.",
                         _FIX + "drops the object."),
    "bbox_over_edge": Kind(_W, "a box that leaves its image by more than 2 pixels",
                           "Training clamps it. Many of them: boxes of another image size or convention.",
                           _FIX + "clamps it."),
    "annotation_id_zero": Kind(_W, "an annotation of id 0",
                               "COCO's evaluation reads a match with id 0 as no match: AP is too low.",
                               _FIX + "gives it a new id."),
    "area_wrong": Kind(_W, "an area that cannot be right (not positive, or beyond that of the box)",
                       "AP of small, medium and large objects counts it in the wrong range.",
                       _FIX + "computes it from mask or box."),
    "iscrowd_missing": Kind(_W, "an object without iscrowd", "Taken as 0 here; other tools refuse the file.",
                            _FIX + "writes 0."),
    "image_size_missing": Kind(_W, "an image without width or height",
                               "Its boxes cannot be checked, and masks cannot be evaluated.",
                               _FIX + "takes them from the picture."),
    "image_twice": Kind(_W, "a picture that is listed twice",
                        "The objects of either entry are background in the other.",
                        _FIX + "merges the entries."),
    "image_in_both_splits": Kind(_W, "a picture that is in train and in val", "AP on it measures memory.",
                                 _FIX + "with --drop leaves it out of train."),
    "exif_ambiguous": Kind(_W, "a picture with an EXIF rotation that its size does not tell (square, upside "
                           "down or mirrored)",
                           "It is seen as stored; who labelled it in a viewer saw it turned.",
                           "Look at its boxes; where they lie wrong, write the picture upright."),
    "crowds_only": Kind(_W, "a class of crowds alone",
                        "Crowds are not trained on: the class is never learned.",
                        "Where they are single objects, set their iscrowd to 0."),
    "image_thin": Kind(_W, "a picture with one side over 100 times the other",
                       "Resized to --max_size, its shorter side nearly vanishes.", "Cut it into pieces."),
    "image_dark": Kind(_W, "pictures of more than 8 bits that use less than an eighth of their range",
                       "They are seen nearly black, since all are scaled alike.",
                       "Pass --white_level with the value that is white."),
    "duplicate_object": Kind(_W, "an object that is there twice (same image, category and box)",
                             "Two queries are asked for one object: duplicates in the predictions.",
                             _FIX + "drops the later one."),
    "segmentation_malformed": Kind(_W, "a segmentation that is neither polygons nor run lengths", _MASKS,
                                   _FIX + "empties it; with --masks it drops the object."),
    "polygon_points": Kind(_W, "a polygon of fewer than 3 points, or of an odd number of coordinates",
                           _MASKS, _POLYGON),
    "polygon_not_finite": Kind(_W, "a polygon with NaN or infinity", _MASKS, _POLYGON),
    "polygon_far": Kind(_W, "a polygon with a point far from its image, beyond 10 times the longer side",
                        _MASKS, _POLYGON),
    "polygon_outside": Kind(_W, "a polygon that leaves its image by more than 2 pixels",
                            "It matters with --masks only, where it is cut.", _FIX + "clamps its points."),
    "rle_misfit": Kind(_W, "run lengths that do not fit the image",
                       "They matter with --masks only, which refuses them.",
                       _FIX + "empties the segmentation; with --masks it drops the object."),
    "mask_box_disagree": Kind(_W, "mask and box of an object lie apart",
                              "One of the two is wrong, and nothing in the file tells which.",
                              "Look at the picture, and correct the one that is wrong."),
    # ---- notes
    "id_gaps": Kind(_N, "gaps in the category ids",
                    "num_classes is the highest id + 1; unused ids cost a row of the classifier each.", ""),
    "ids_from_zero": Kind(_N, "category ids start at 0", "They may: DETR's no-object class is the last.", ""),
    "empty_classes": Kind(_N, "classes without objects", "They are not learned, and not scored.", ""),
    "same_names": Kind(_N, "several categories of one name", "Weights are carried over by name.", ""),
    "one_split_only": Kind(_N, "classes with objects in one split only",
                           "Learned and not scored, or scored and not learned.", ""),
    "more_than_queries": Kind(_N, "images with more objects than queries",
                              "The objects left over are never learned.", "Pass a larger --num_queries."),
    "no_segmentation": Kind(_N, "objects without a mask", "Training with --masks refuses them.",
                            "Add polygons, or train without --masks. With --masks, " + _FIX
                            + "drops the object."),
    "crowds": Kind(_N, "crowds", "They are not trained on; in evaluation they excuse detections.", ""),
    "image_deep": Kind(_N, "pictures of more than 8 bits", "They are scaled to 8, see --white_level.", ""),
    "image_transparent": Kind(_N, "pictures with transparency", "They are seen on white.", ""),
    "not_listed": Kind(_N, "pictures in the folder that the file does not list", "They are not used.", ""),
    "exif_turned": Kind(_N, "pictures seen turned by their EXIF tag, as their entries state", "", ""),
    "exif_as_stored": Kind(_N, "pictures with an EXIF rotation seen as stored, as their entries state",
                           "", ""),
    "images_without_objects": Kind(_N, "images without objects", "They are trained on as background.", ""),
}  # fmt: skip
